"""`python -m saegis.cli` is the command `saegis`."""

from saegis.cli.main import main

if __name__ == "__main__":
    main()
