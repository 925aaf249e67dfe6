"""Directions that are kept for requests to refer to: the operator's, and those that tenants upload."""
