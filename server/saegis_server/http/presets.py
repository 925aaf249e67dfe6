"""Presets: programs that the operator keeps in files, and that clients ask for by the name of a model."""

from collections.abc import Mapping
from pathlib import Path

from saegis.v1 import steering_pb2
from saegis_server.http.body import message_of
from saegis_server.json_text import parse_json
from saegis_server.policy.schema.yaml_text import read_yaml
from saegis_server.rpc.services.shared import Services
from saegis_server.rpc.wire.programs import request_steering


class PresetError(ValueError):
    """A preset cannot be served."""


def read_presets(files: Mapping[str, Path]) -> dict[str, steering_pb2.Steering]:
    """The program in each file, by the preset's name: `Steering` of the contract in YAML or JSON.

    Raises PresetError, and OSError for a file that cannot be read.
    """
    return {name: _read(name, path) for name, path in files.items()}


def _read(name: str, path: Path) -> steering_pb2.Steering:
    try:
        data = path.read_bytes()
        read = parse_json(data.decode()) if path.suffix == ".json" else read_yaml(data, str(path)).value
        steering = message_of(steering_pb2.Steering, read, "")
    except (ValueError, RecursionError) as error:
        raise PresetError(f"the preset {name} ({path}): {error}") from error
    if not steering.ListFields():
        raise PresetError(f"the preset {name} ({path}) has no edits and no watches")
    return steering


def check_presets(presets: Mapping[str, steering_pb2.Steering], services: Services) -> None:
    """Raise PresetError for a program that this server cannot run."""
    for name, steering in presets.items():
        try:
            made = request_steering(steering, services.targets, services.engine.capacity)
            made.require_room(services.engine.capacity)
        except (ValueError, LookupError) as error:
            raise PresetError(f"the preset {name}: {error}") from error
