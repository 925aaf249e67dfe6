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
from collections.abc import Sequence
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


def resident() -> tuple[float, float]:
    """The process's own memory, and the pages of files that it has mapped, which the kernel takes back when
    they are wanted, in GB."""
    words = Path("/proc/self/statm").read_text().split()
    held, of_files = (int(word) * os.sysconf("SC_PAGE_SIZE") / 1e9 for word in words[1:3])
    return held - of_files, of_files


def load(folder: Path) -> SparseAutoencoder:
    """Load the SAE, and print how long that took and by how much the process has grown."""
    before, began, worked = sum(resident()), time.perf_counter(), time.process_time()
    sae = load_sae(folder)
    took, worked = time.perf_counter() - began, time.process_time() - worked
    print(
        f"{sae.features:,} features at {sae.width}: loaded in {took:.1f} s (of the processor's time "
        f"{worked:.1f} s), {sum(resident()) - before:.2f} GB more resident",
        flush=True,
    )
    return sae


def program_of(sae: SparseAutoencoder) -> tuple[SiteProgram, float]:
    """Clamps of random features, and the milliseconds that it takes to make the rows of one."""
    chosen = random.Random(0).sample(range(sae.features), ROWS)
    began = time.perf_counter()
    edits = tuple(clamp(sae.probe(feature), 0.5) for feature in chosen)
    return SiteProgram(edits=edits), 1000.0 * (time.perf_counter() - began) / ROWS


def steps_of(programs: Sequence[SiteProgram], width: int) -> list[list[float]]:
    """The milliseconds of the processor's time that each of ROUNDS steps of SLOTS tokens takes, all of whose
    slots have the same program; for each program, in turns."""
    x, tokens = torch.randn(SLOTS, width), Tokens(torch.zeros(SLOTS, dtype=torch.bool), Spread.EACH)
    views, times = [], [list[float]() for _ in programs]
    for program in programs:
        table, admitted = SiteTable(SLOTS, width, Capacity()), AdmittedRows.of(program)
        for slot in range(SLOTS):
            table.write(slot, admitted, admitted.geometry, admitted.moves)
        views.append(table.view(SLOTS, ROWS, 2, 2, 2, 2))
    for _ in range(ROUNDS):
        for view, taken in zip(views, times, strict=True):
            began = time.thread_time()
            apply(x, view, tokens)
            taken.append(1000.0 * (time.thread_time() - began))
    return times


def main() -> None:
    """Write, load and take rows, for the large SAE and for the small one; then steer with both in turns."""
    torch.set_num_threads(1)
    given = [int(text) for text in sys.argv[1:3]]
    features, width = (*given, *(1_048_576, 2304)[len(given) :])
    programs = []
    for count in (features, FEW):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), count, width)
            sae = load(Path(folder))
            program, first = program_of(sae)
            _, again = program_of(sae)
            own, of_files = resident()
            print(
                f"  a feature's rows: {first:.2f} ms, again {again:.2f} ms; {own:.2f} GB resident, and "
                f"{of_files:.2f} GB of files"
            )
            programs.append(program)
    large, small = steps_of(programs, width)
    ratio = statistics.median(one / other for one, other in zip(large, small, strict=True))
    print(
        f"a step of {SLOTS} tokens with {ROWS} rows each, of one processor's time: "
        f"{statistics.median(large):.3f} ms at {features:,} features, {statistics.median(small):.3f} ms at "
        f"{FEW:,}; the median of {ROUNDS} ratios is {ratio:.2f}"
    )
    print(f"matrices of more than {MAPPED_FROM / 2**30:g} GiB in float32 stay in their file")


if __name__ == "__main__":
    main()
