"""What the build adds to the client's package from outside of this folder: the contract and the licence."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Contract(BuildHookInterface):
    """Puts the protos beside the stubs in a wheel, and keeps them as they lie in a source distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files, in the repository or in an unpacked source distribution."""
        if version == "editable":
            return
        here = Path(self.root)
        root = here if (here / "protos").is_dir() else here.parents[1]
        wheel = self.target_name == "wheel"
        build_data["force_include"] |= {
            str(root / "protos/saegis/v1"): "saegis/v1" if wheel else "protos/saegis/v1",
            str(root / "LICENSE"): "saegis/LICENSE" if wheel else "LICENSE",
        }
