"""Training: sparse autoencoders for any Transformers causal language model, and labels for their features."""
