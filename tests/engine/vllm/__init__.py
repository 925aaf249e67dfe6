"""The engine on vLLM, as far as it can be tried without vLLM, and what needs it."""
