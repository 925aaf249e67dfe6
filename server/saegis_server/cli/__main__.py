"""`python -m saegis_server.cli` runs the command `saegis`, even without an installation."""

from saegis.cli.main import main
from saegis_lab.cli.main import add_commands

if __name__ == "__main__":
    add_commands()
    main()
