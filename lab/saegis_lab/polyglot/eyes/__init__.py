"""Eyes for the reference model: a patch encoder and a projector before the unchanged language model."""
