"""What policies say to a request: compiled in their world, combined without order, and told in words."""
