"""Sparse autoencoders: their canonical form, readers, checks and training."""
