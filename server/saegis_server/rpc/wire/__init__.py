"""Messages of the contract to what the server works with, and back; every error with its field and status."""
