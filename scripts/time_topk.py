"""Time what a decode step costs with programs of a TopK SAE, beside plain ones and without such an SAE.

python scripts/time_topk.py [eager] [FEATURES ...]     by default 4096 and 65536

On the benchmark's random Llama. Steps are compiled, unless they are to run eagerly, which takes no minutes to
begin with. They run on one thread, in turns; told are the processor's time and the median ratio.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from saegis_lab.bench.subjects import Subject, random_llama, random_sae
from saegis_server.engine.api import SamplingParams
from saegis_server.engine.torch.slots import Slots
from saegis_server.engine.torch.step import SMALLEST, Extent, Step
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import Norm, clamp
from saegis_server.steering.table import Capacity

K, ROWS, SLOTS, LENGTH, ROUNDS, WARM = 64, 8, 8, 64, 60, 5


def topk(width: int, features: int) -> SparseAutoencoder:
    """The benchmark's random SAE, of which the K largest features are active."""
    return replace(
        random_sae(width, features), architecture=Architecture.STANDARD, threshold=None, k=K, digest=""
    )


def step_of(subject: Subject, saes: list[SparseAutoencoder], compiled: bool) -> Step:
    """A step with SAEs at the subject's site."""
    model, ranked = subject.make(), [sae.ranked(subject.device) for sae in saes]
    known = {subject.site: [each for each in ranked if each is not None]}
    slots = Slots(model, (subject.site,), SLOTS, LENGTH, Capacity(), ranked=known)
    return Step(model, {subject.site: frozenset({Norm.NONE})}, slots, compiled)


def decoding(step: Step, site_rows: SiteProgram) -> Callable[[], float]:
    """What runs one step of all slots, each with the rows, and tells its milliseconds of a processor."""
    slots = step.slots
    program = slots.room.admit({step.sites[0]: site_rows}) if site_rows != SiteProgram() else {}
    extent = Extent(SLOTS, LENGTH, edits=max(SMALLEST, len(site_rows.edits)))

    def run() -> float:
        for slot in range(SLOTS):
            slots.load(slot, [], SamplingParams(temperature=0.0), 0, (), program)
            slots.state.position[slot], slots.state.token[slot] = LENGTH - 2, slot
        began = time.thread_time()
        step.decode(extent, SLOTS, False)
        return 1000.0 * (time.thread_time() - began)

    return run


def main() -> None:
    """Compile a step for each size and one without an SAE, and run them in turns."""
    torch.set_num_threads(1)
    subject = random_llama()
    given = sys.argv[1:]
    compiled = "eager" not in given
    plain = step_of(subject, [], compiled)
    runs = {"without a TopK SAE": decoding(plain, SiteProgram())}
    relu = random_sae(subject.width, 4096)
    clamps = [clamp(relu.probe(feature), 0.5) for feature in range(ROWS)]
    runs[f"{ROWS} clamps of another SAE"] = decoding(plain, SiteProgram(tuple(clamps)))
    for features in [int(text) for text in given if text != "eager"] or [4096, 65536]:
        sae = topk(subject.width, features)
        step = step_of(subject, [sae], compiled)
        runs[f"TopK of {features:,} features, idle"] = decoding(step, SiteProgram())
        probes = [sae.probe(feature) for feature in range(ROWS)]
        rows = SiteProgram(tuple(clamp(probe, 0.5) for probe in probes))
        runs[f"TopK of {features:,} features, {ROWS} clamps"] = decoding(step, rows)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(WARM + ROUNDS):
        for name, run in runs.items():
            milliseconds = run()
            if number >= WARM:
                taken[name].append(milliseconds)
    first = next(iter(taken.values()))
    for name, each in taken.items():
        ratio = statistics.median(one / other for one, other in zip(each, first, strict=True))
        print(
            f"{name}: {statistics.median(each):.2f} ms a step of {SLOTS} tokens, {ratio:.2f} times the first"
        )


if __name__ == "__main__":
    main()
