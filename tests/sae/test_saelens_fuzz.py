"""Broken files: whatever the bytes of an SAE's files are, reading gives an SAE or a SAEFileError."""

import contextlib
import json
import math
import struct
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.files import load_sae
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.sae.labels import LABELS_FILE, Labels
from tests.sae.sae_cases import random_activations, random_sae


def _sound() -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as name:
        save_sae(random_sae(Architecture.JUMPRELU), Path(name))
        return (Path(name) / "sae_weights.safetensors").read_bytes(), (Path(name) / "cfg.json").read_bytes()


WEIGHTS, CONFIG = _sound()
HEADER_LENGTH = struct.unpack("<Q", WEIGHTS[:8])[0]
HEADER = json.loads(WEIGHTS[8 : 8 + HEADER_LENGTH])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _read(weights: bytes, config: bytes) -> SparseAutoencoder | None:
    """The SAE, or None for a SAEFileError; what is read must work."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "sae_weights.safetensors").write_bytes(weights)
        (Path(name) / "cfg.json").write_bytes(config)
        try:
            sae = load_sae(Path(name))
        except SAEFileError:
            return None
        sae.encode(random_activations(2))
        assert all(math.isfinite(sae.probe(feature).gate_bias) for feature in range(sae.features))
        return sae


def test_sound_bytes_are_read() -> None:
    assert _read(WEIGHTS, CONFIG) is not None


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_bytes_of_the_weights(data: st.DataObject) -> None:
    content = bytearray(WEIGHTS)
    places = st.integers(0, len(WEIGHTS) - 1) | st.integers(0, 8 + HEADER_LENGTH - 1)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(places)] = data.draw(st.integers(0, 255))
    _read(bytes(content), CONFIG)


@settings(max_examples=80, deadline=None)
@given(cut=st.integers(0, len(WEIGHTS) - 1), tail=st.binary(max_size=40))
def test_cut_weights(cut: int, tail: bytes) -> None:
    if WEIGHTS[:cut] + tail != WEIGHTS:
        _read(WEIGHTS[:cut] + tail, CONFIG)


@settings(max_examples=150, deadline=None)
@given(
    tensor=st.sampled_from(sorted(set(HEADER) - {"__metadata__"})),
    key=st.sampled_from(["dtype", "shape", "data_offsets", "other"]),
    value=json_values
    | st.sampled_from(["F16", "F64", "I64", "BOOL", "F8_E4M3", "F4", "U8", "C64"])
    | st.lists(st.integers(-1, 2**63), max_size=3),
)
def test_changed_header(tensor: str, key: str, value: object) -> None:
    header = json.loads(json.dumps(HEADER))
    header[tensor][key] = value
    text = json.dumps(header).encode()
    _read(struct.pack("<Q", len(text)) + text + WEIGHTS[8 + HEADER_LENGTH :], CONFIG)


@settings(max_examples=150, deadline=None)
@given(field=st.sampled_from(sorted(json.loads(CONFIG))), value=json_values)
def test_changed_field_of_the_configuration(field: str, value: object) -> None:
    _read(WEIGHTS, json.dumps(json.loads(CONFIG) | {field: value}).encode())


@settings(max_examples=80, deadline=None)
@given(
    field=st.sampled_from(["hook_name", "model_name", "fvu", "l0", "norm_scaling_factor", "hook_head_index"]),
    value=json_values,
)
def test_changed_metadata(field: str, value: object) -> None:
    _read(WEIGHTS, json.dumps(json.loads(CONFIG) | {"metadata": {field: value}}).encode())


@settings(max_examples=80, deadline=None)
@given(content=st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_configuration(content: bytes) -> None:
    assert _read(WEIGHTS, content) is None


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_changed_bytes_of_the_configuration(data: st.DataObject) -> None:
    content = bytearray(CONFIG)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    _read(WEIGHTS, bytes(content))


@settings(max_examples=100, deadline=None)
@given(
    content=st.binary(max_size=60)
    | st.dictionaries(
        st.sampled_from(["feature", "label", "subjects", "languages", "recall", "density", "harmful"]),
        json_values,
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_labels(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / LABELS_FILE).write_bytes(content)
        with contextlib.suppress(SAEFileError):
            for label in Labels.load(Path(name)):
                assert label.label
