"""The engine: a model, its KV cache, a scheduler and the loop that runs steered steps."""
