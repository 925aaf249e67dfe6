"""Evaluation: what an edit does to a served model, measured language by language through the client."""
