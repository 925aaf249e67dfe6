"""Steering: probe, clip and write on a site's activations, as pure tensors that know no model."""
