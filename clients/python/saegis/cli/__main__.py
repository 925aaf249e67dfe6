"""`python -m saegis.cli` runs the command `saegis`."""

from saegis.cli.main import main

if __name__ == "__main__":
    main()
