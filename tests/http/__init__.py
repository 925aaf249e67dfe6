"""The OpenAI-compatible face, mostly by the public clients as they are."""
