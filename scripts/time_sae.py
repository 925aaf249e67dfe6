"""Time the loading of a large SAE, whose matrices stay in their file, and what an edit of it costs.

python scripts/time_sae.py [FEATURES [WIDTH]]     by default 1,048,576 at 2,304 in bfloat16: a file of 9.7 GB
in the folder for temporary files, which is deleted at the end. Beside it stands an SAE of 4,096 features.
"""

import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.files import load_sae
from saegis_server.sae.formats.saelens import CONFIG_FILE, WEIGHTS_FILE
from saegis_server.sae.mapped import MAPPED_FROM
from saegis_server.steering.admitted import AdmittedRows
from saegis_server.steering.apply import apply
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import clamp
from saegis_server.steering.table import Capacity, SiteTable
from saegis_server.steering.tokens import Spread, Tokens

FEW, ROWS, SLOTS, ROUNDS = 4096, 8, 16, 200
_CHUNK = 1 << 26


def write(folder: Path, features: int, width: int) -> None:
    """A random standard SAE in SAELens's layout, written a piece at a time."""
    shapes = {"W_enc": [width, features], "W_dec": [features, width], "b_enc": [features], "b_dec": [width]}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    drawn = torch.randn(_CHUNK // 2, generator=torch.Generator().manual_seed(features)) / width**0.5
    piece = drawn.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    with (folder / WEIGHTS_FILE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for left in range(end, 0, -_CHUNK):
            file.write(piece[:left])
    config = {"architecture": "standard", "d_in": width, "d_sae": features, "dtype": "bfloat16"}
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"normalize_activations": "none"}))


def resident() -> float:
    """The process's own memory and the pages of files that it has mapped, in GB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9


def load(folder: Path) -> SparseAutoencoder:
    """Load the SAE, and print how long that took and by how much the process has grown."""
    before, began, worked = resident(), time.perf_counter(), time.process_time()
    sae = load_sae(folder)
    took, worked = time.perf_counter() - began, time.process_time() - worked
    print(
        f"{sae.features:,} features at {sae.width}: loaded in {took:.1f} s (of the processor's time "
        f"{worked:.1f} s), {resident() - before:.2f} GB more resident",
        flush=True,
    )
    return sae


def program_of(sae: SparseAutoencoder) -> tuple[SiteProgram, float]:
    """Clamps of random features, and the milliseconds that it takes to make the rows of one."""
    chosen = random.Random(0).sample(range(sae.features), ROWS)
    began = time.perf_counter()
    edits = tuple(clamp(sae.probe(feature), 0.5) for feature in chosen)
    return SiteProgram(edits=edits), 1000.0 * (time.perf_counter() - began) / ROWS


def step_of(program: SiteProgram, width: int) -> list[float]:
    """The milliseconds of each of ROUNDS steps of SLOTS tokens, each of whose slots has the program."""
    table, admitted = SiteTable(SLOTS, width, Capacity()), AdmittedRows.of(program)
    for slot in range(SLOTS):
        table.write(slot, admitted, admitted.geometry, admitted.moves)
    view = table.view(SLOTS, ROWS, 2, 2, 2, 2)
    x, tokens = torch.randn(SLOTS, width), Tokens(torch.zeros(SLOTS, dtype=torch.bool), Spread.EACH)
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        apply(x, view, tokens)
        times.append(1000.0 * (time.perf_counter() - began))
    return times


def main() -> None:
    """Write, load, take rows and steer with them, for the large SAE and for the small one."""
    given = [int(text) for text in sys.argv[1:3]]
    features, width = (*given, *(1_048_576, 2304)[len(given) :])
    for count in (features, FEW):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), count, width)
            sae = load(Path(folder))
            program, first = program_of(sae)
            _, again = program_of(sae)
            print(f"  a feature's rows: {first:.2f} ms, again {again:.2f} ms; {resident():.2f} GB resident")
            took = statistics.median(step_of(program, width))
            print(f"  a step of {SLOTS} tokens with {ROWS} rows each: {took:.3f} ms")
    print(f"matrices of more than {MAPPED_FROM / 2**30:g} GiB in float32 stay in their file")


if __name__ == "__main__":
    main()
