"""What policies decide on a request: compiled for their world, combined in any order, explained in words."""
