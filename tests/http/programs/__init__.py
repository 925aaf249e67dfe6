"""Programs of clients of other projects, each run by itself in the environment that `make tools` makes."""
