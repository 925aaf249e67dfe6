"""How the command `saegis` that runs is to be typed, here and now."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "saegis"


def own_command() -> str:
    """`saegis` where the shell finds this one by that name, else its path, relative where that is shorter.

    Where it runs as a module it is the script beside this Python, or `python -m saegis_server.cli`.
    """
    script = Path(sys.argv[0])
    if script.name != NAME:
        script = Path(sys.executable).parent / NAME
    if not script.is_file():
        return f"{shlex.quote(sys.executable)} -m saegis_server.cli"
    found = shutil.which(NAME)
    if found is not None and Path(found).resolve() == script.resolve():
        return NAME
    # Not resolved: a link into an environment is how that environment is named.
    absolute = os.path.abspath(script)
    relative = os.path.relpath(absolute)
    # A bare name would be looked for on PATH.
    relative = relative if os.sep in relative else os.path.join(os.curdir, relative)
    return shlex.quote(min(relative, absolute, key=len))
