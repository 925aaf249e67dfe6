"""What the build adds to the server's metadata: that it needs the client of its own version."""

from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Dependencies(MetadataHookInterface):
    """Adds the client to the dependencies that pyproject.toml names for this hook."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the dependencies; the version is that of clients/python/saegis/version.py."""
        metadata["dependencies"] = [f"saegis[cli]=={metadata['version']}", *self.config["dependencies"]]
