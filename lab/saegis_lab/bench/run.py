"""The run: every comparison of one subject, its sides taking turns so that both meet the same machine."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from saegis_lab.bench.loads import (
    CONDITIONS,
    COUNTED,
    READINGS,
    ROWS,
    USAGE_EVERY,
    counted,
    dictionary,
    generate,
    generate_with_hooks,
    guarded,
    programs,
    prompts,
    tokens_per_second,
    warm_step,
)
from saegis_lab.bench.report import Ratio
from saegis_lab.bench.subjects import Subject, moved, random_sae
from saegis_server.engine.api import Progress
from saegis_server.engine.torch.step import Step
from saegis_server.steering.program import SteeringProgram

T = TypeVar("T")
CONCURRENT = 16
MANY = 64
DIFFERENT = AT_ONCE = (1, 4, 16, 64)
WIDTHS = (4096, 16384, 65536)
#: How many times as many rounds tell two hundredths apart.
OPERATING_ROUNDS = 6


def in_own_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own, whose OpenMP team ends with it: see rpc/threads.py."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def take_turns(sides: list[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Measure every side once a round; a list for each side. A first round does not count.

    Every other round takes them the other way round, so that a machine that slows down favours none.
    """
    forth = list(range(len(sides)))
    measured: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 1):
        for place in reversed(forth) if number % 2 else forth:
            speed = in_own_thread(sides[place])
            if number > 0:
                measured[place].append(speed)
    return measured


def steering(subject: Subject, rounds: int, progress: Progress) -> list[Ratio]:
    """What requests cost on one subject. Compiles twice: with the site, and without any."""
    ratios = []

    def add(what: str, against: str, ours: list[float], theirs: list[float], bar: str) -> None:
        ratios.append(Ratio.of(subject.title, what, against, ours, theirs, bar))

    saes = in_own_thread(lambda: {width: random_sae(subject.width, width) for width in WIDTHS})
    few, many = in_own_thread(lambda: (prompts(subject, CONCURRENT), prompts(subject, MANY)))
    step = in_own_thread(lambda: warm_step(subject, (subject.site,), MANY, progress))
    bare = in_own_thread(lambda: warm_step(subject, (), MANY, progress))
    plain, hooked = in_own_thread(lambda: (subject.make(), subject.make()))
    whole = in_own_thread(lambda: moved(saes[16384], subject.device))

    steered = in_own_thread(lambda: programs(subject, saes[16384], CONCURRENT, CONCURRENT))
    watched, guards = in_own_thread(lambda: guarded(subject, saes[16384], CONCURRENT))
    progress(f"{CONCURRENT} requests at once", 0, 3)
    ours, watching, unsteered, hookless, static, hooks = take_turns(
        [
            lambda: tokens_per_second(step, few, steered),
            lambda: tokens_per_second(step, few, watched, guards),
            lambda: tokens_per_second(step, few),
            lambda: tokens_per_second(bare, few),
            lambda: generate(plain, few),
            lambda: generate_with_hooks(hooked, subject.site, whole, few[:1]),
        ],
        rounds,
    )
    add(f"{CONCURRENT} × {ROWS} rows, all different", "unsteered", ours, unsteered, "≥ 0.95")
    judged = f"{CONCURRENT} × {READINGS} watches and {CONDITIONS} conditions"
    add(judged, "unsteered", watching, unsteered, "≥ 0.95")
    add(f"{CONCURRENT} × {ROWS} rows, all different", "no site in the model", ours, hookless, "")
    add("unsteered", "Transformers, static batch", unsteered, static, "≥ 1.0")
    add(f"{CONCURRENT} × {ROWS} rows, all different", "Transformers + hooks, full SAE", ours, hooks, "≥ 5")

    progress(f"{MANY} requests at once", 1, 3)
    handed = in_own_thread(lambda: [programs(subject, saes[16384], count, MANY) for count in DIFFERENT])
    without, sides = _beside_unsteered(step, many, handed, rounds)
    for count, side in zip(DIFFERENT, sides, strict=True):
        add(f"{MANY} × {ROWS} rows, {count} different", "unsteered", side, without, "flat")

    progress("SAE widths", 2, 3)
    by_width = in_own_thread(
        lambda: [programs(subject, saes[width], CONCURRENT, CONCURRENT) for width in WIDTHS]
    )
    without, sides = _beside_unsteered(step, few, by_width, rounds)
    for width, side in zip(WIDTHS, sides, strict=True):
        add(f"{CONCURRENT} × {ROWS} rows, SAE of {width // 1024}k", "unsteered", side, without, "flat")
    progress("done", 3, 3)
    return ratios


def packing(subject: Subject, rounds: int, progress: Progress) -> list[Ratio]:
    """What packed weights are worth on one subject, to so many requests at once.

    Compiles twice: with them, and without.
    """
    asked = in_own_thread(lambda: {count: prompts(subject, count) for count in AT_ONCE})
    sites = (subject.site,)
    packed = in_own_thread(lambda: warm_step(subject, sites, MANY, progress))
    plain = in_own_thread(lambda: warm_step(subject, sites, MANY, progress, packed=False))
    ratios = []
    for done, count in enumerate(AT_ONCE):
        progress(f"{count} requests at once, packed and not", done, len(AT_ONCE))
        ours, theirs = take_turns(
            [
                lambda: tokens_per_second(packed, asked[count]),  # noqa: B023 - called before the next turn
                lambda: tokens_per_second(plain, asked[count]),  # noqa: B023
            ],
            rounds,
        )
        what = f"{count} {'request' if count == 1 else 'requests'} at once, weights packed"
        ratios.append(Ratio.of(subject.title, what, "as they lie", ours, theirs, "≥ 1.0"))
    return ratios


def operating(subject: Subject, rounds: int, progress: Progress) -> list[Ratio]:
    """What an operator's counting of features costs on one subject, in many rounds, since it is so little.

    Compiles twice: with activations kept for what counts all features, and without.
    """
    watched, wide, few = in_own_thread(
        lambda: (
            random_sae(subject.width, WIDTHS[1]),
            random_sae(subject.width, WIDTHS[-1]),
            prompts(subject, CONCURRENT),
        )
    )
    usage = in_own_thread(lambda: dictionary(subject, wide))
    features = in_own_thread(lambda: counted(subject, watched))
    step = in_own_thread(lambda: warm_step(subject, (subject.site,), CONCURRENT, progress))
    keeping = in_own_thread(lambda: warm_step(subject, (subject.site,), CONCURRENT, progress, usage))
    progress("features that are counted", 0, 1)
    counting, sampling, without = take_turns(
        [
            lambda: tokens_per_second(step, few, observed=features),
            lambda: tokens_per_second(keeping, few, usage=usage),
            lambda: tokens_per_second(step, few),
        ],
        OPERATING_ROUNDS * rounds,
    )
    sampled = f"all features of an SAE of {WIDTHS[-1] // 1024}k counted at 1/{USAGE_EVERY}"
    return [
        Ratio.of(
            subject.title, f"{COUNTED} features counted at every token", "none", counting, without, "≥ 0.98"
        ),
        Ratio.of(subject.title, sampled, "none", sampling, without, "≥ 0.95"),
    ]


def _beside_unsteered(
    step: Step, asked: list[list[int]], steerings: Sequence[list[SteeringProgram]], rounds: int
) -> tuple[list[float], list[list[float]]]:
    """Tokens a second for the same prompts unsteered and under each steering, in turns."""
    without, *sides = take_turns(
        [
            lambda: tokens_per_second(step, asked),
            *(lambda steering=steering: tokens_per_second(step, asked, steering) for steering in steerings),
        ],
        rounds,
    )
    return without, sides
