"""A small bundle that has every kind of file, as files by path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

POLICY = """\
apiVersion: saegis.dev/v1
kind: Policy
name: acme.base
serial: 3
revision: "2026.1"
description: Nothing about poison.
match:
  tenants: [acme]
rules:
  - id: no-poison
    reason: It is harmful.
    ban:
      features:
        - index: 7
        - where: {harmful: true, min_precision: 0.5}
      strength: 2
  - id: stop-poison
    when:
      if:
        any:
          - {feature: {label: poison}, above: 1.5}
          - not: {direction: {file: directions/calm.safetensors}, above: 0}
      over: window
      window: 8
    stop: {}
allow:
  - {id: style, ops: [clamp, scale], features: [{index: 3}], min: -2, max: 4}
limits: {max_edits: 4, max_relative_norm: 0.5}
"""
PART = """\
apiVersion: saegis.dev/v1
kind: PolicyPart
rules:
  - id: less-river
    cap: {features: [{label: a river}], value: 1}
protect:
  - id: keep
    features: [{index: 11}]
"""
CASES = """\
apiVersion: saegis.dev/v1
kind: PolicyCases
cases:
  - name: no edits
    request: {tenant: acme}
    expect: {decision: allow}
  - name: another tenant
    request: {tenant: other}
    expect: {decision: no_policy}
"""


def direction(width: int = 32) -> bytes:
    """A safetensors file with one direction, `v`."""
    return save({"v": torch.ones(width)})


def bundle_files() -> dict[str, bytes]:
    """The files, a new dict each time."""
    return {
        "policy.yaml": POLICY.encode(),
        "rules/part.yaml": PART.encode(),
        "tests/cases.yaml": CASES.encode(),
        "directions/calm.safetensors": direction(),
        "calibration.json": b'{"strength": 2}\n',
        "README.md": b"# A policy\n",
    }


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write the files under `folder`, which is made."""
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder
