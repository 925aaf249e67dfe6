"""The schema of a policy's YAML, read with the place of every key."""
