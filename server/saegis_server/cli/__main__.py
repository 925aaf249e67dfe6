"""`python -m saegis_server.cli` is the command `saegis`, also where nothing is installed."""

from saegis.cli.main import main
from saegis_lab.cli.main import add_commands

if __name__ == "__main__":
    add_commands()
    main()
