"""The engine on vLLM: the same steering inside vLLM's own forward pass, without a fork."""
