"""The commands of the lab, each in a module of its own that loads only what it needs."""
