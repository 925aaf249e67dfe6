"""What a policy's YAML may say, read with the place of every key."""
