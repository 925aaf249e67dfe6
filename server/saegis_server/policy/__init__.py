"""Policies: the rules of the operator, from the files of a bundle to what they mean for one request."""
