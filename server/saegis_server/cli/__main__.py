"""`python -m saegis_server.cli` is the command `saegis`."""

from saegis_server.cli.main import main

if __name__ == "__main__":
    main()
