"""vLLM in the benchmark: what steering costs in it, and the embedded engine beside it, in one run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from statistics import median

from saegis_lab.bench.loads import ROWS
from saegis_lab.bench.report import Ratio
from saegis_lab.bench.run import AT_ONCE, CONCURRENT, DIFFERENT, MANY, take_turns
from saegis_lab.bench.sides import (
    SHARED_TOKENS,
    Embedded,
    FirstTokens,
    Load,
    Plain,
    Side,
    SteeredVllm,
)
from saegis_server.engine.api import Progress

#: SAEs of these widths are to cost the same.
VLLM_WIDTHS = (4096, 65_536, 1_048_576)
EAGER, COMPILED = "plain vLLM, eager", "plain vLLM"
UNSTEERED = "the same vLLM unsteered"
#: What is told of one side of a comparison: which engine, under which load.
Told = tuple[str, Load]


class _Sides:
    """The engines that are measured, by name."""

    def __init__(self, subject: str, rounds: int, progress: Progress, opened: ExitStack) -> None:
        makers: dict[str, Callable[[], Plain | SteeredVllm | Embedded]] = {
            "plain": Plain,
            "compiled": partial(Plain, True),
            "eager": SteeredVllm,
            "steered": partial(SteeredVllm, True),
            "embedded": Embedded,
        }
        self.subject, self.rounds, self._side = subject, rounds, dict[str, Side]()
        for done, (name, make) in enumerate(makers.items()):
            progress(f"starting {name}", done, len(makers))
            self._side[name] = opened.enter_context(Side(make))

    def measured(self, asked: list[Told]) -> dict[Told, list[float]]:
        """Tokens a second of each, in turns."""
        speeds = take_turns(
            [partial(self._side[name].tokens_per_second, load) for name, load in asked], self.rounds
        )
        return dict(zip(asked, speeds, strict=True))

    def first_tokens(self, different: tuple[int, int]) -> list[list[FirstTokens]]:
        """How long first tokens take under so many programs, and under so many others, in turns."""
        found: list[list[FirstTokens]] = [[], []]

        def wait(place: int) -> float:
            found[place].append(self._side["steered"].first_tokens(different[place]))
            return found[place][-1].wait

        take_turns([partial(wait, 0), partial(wait, 1)], self.rounds)
        return [each[1:] for each in found]  # the first round does not count


def beside_vllm(subject: str, rounds: int, progress: Progress) -> list[Ratio]:
    """vLLM plain, with the steering in it, and the embedded engine, on one random Llama.

    subject: what it is called. Raises VllmMissingError where there is no vLLM. Compiles for two of the sides.
    """
    with ExitStack() as opened:
        sides = _Sides(subject, rounds, progress, opened)
        stages = {
            "programs in vLLM": _concurrent,
            "numbers of different programs": _programs,
            "widths of SAEs": _widths,
            "the embedded engine beside vLLM": _at_once,
            "a prefix that is shared": _prefix,
        }
        ratios: list[Ratio] = []
        for done, (name, stage) in enumerate(stages.items()):
            progress(name, done, len(stages))
            ratios += stage(sides)
        return ratios


def _compared(sides: _Sides, told: list[tuple[str, str, Told, Told, str]]) -> list[Ratio]:
    """Comparisons, each of what with what, of one load with another, and the bar; measured in turns."""
    asked = list(dict.fromkeys(each for _, _, ours, theirs, _ in told for each in (ours, theirs)))
    speeds = sides.measured(asked)
    return [
        Ratio.of(sides.subject, what, against, speeds[ours], speeds[theirs], bar)
        for what, against, ours, theirs, bar in told
    ]


def _concurrent(sides: _Sides) -> list[Ratio]:
    """What programs cost in vLLM, against none and against vLLM alone."""
    told: list[tuple[str, str, Told, Told, str]] = []
    for name, mine, its, theirs, bar in (
        ("vLLM", "steered", "compiled", COMPILED, "≥ 0.97"),
        ("vLLM, eager", "eager", "plain", EAGER, ""),
    ):
        steered, bare, plain = (
            (mine, Load(CONCURRENT, CONCURRENT)),
            (mine, Load(CONCURRENT)),
            (its, Load(CONCURRENT)),
        )
        what = f"{name}, {CONCURRENT} × {ROWS} rows, all different"
        told += [
            (what, UNSTEERED, steered, bare, bar),
            (what, theirs, steered, plain, bar),
            (f"{name}, {CONCURRENT} unsteered", theirs, bare, plain, ""),
        ]
    return _compared(sides, told)


def _programs(sides: _Sides) -> list[Ratio]:
    """Whether it matters how many different programs there are."""
    bare = ("steered", Load(MANY))
    return _compared(
        sides,
        [
            (
                f"vLLM, {MANY} × {ROWS} rows, {count} different",
                UNSTEERED,
                ("steered", Load(MANY, count)),
                bare,
                "flat",
            )
            for count in DIFFERENT
        ],
    )


def _widths(sides: _Sides) -> list[Ratio]:
    """Whether it matters how wide their SAE is."""
    bare, told = ("steered", Load(CONCURRENT)), []
    for width in VLLM_WIDTHS:
        what = f"vLLM, {CONCURRENT} × {ROWS} rows, SAE of {width // 1024}k"
        told.append((what, UNSTEERED, ("steered", Load(CONCURRENT, CONCURRENT, width)), bare, "flat"))
    return _compared(sides, told)


def _at_once(sides: _Sides) -> list[Ratio]:
    """The embedded engine beside vLLM alone."""
    ratios = []
    for count in AT_ONCE:
        plain, compiled, bare = ("plain", Load(count)), ("compiled", Load(count)), ("embedded", Load(count))
        steered = ("embedded", Load(count, count))
        ratios += _compared(
            sides,
            [
                (f"embedded, {count} unsteered", EAGER, bare, plain, ""),
                (f"embedded, {count} unsteered", COMPILED, bare, compiled, "≥ 0.95"),
                (f"embedded, {count} × {ROWS} rows, all different", COMPILED, steered, compiled, "≥ 0.95"),
            ],
        )
    return ratios


def _prefix(sides: _Sides) -> list[Ratio]:
    """What a prefix is worth that requests share, and that those of other programs do not."""
    one, many = sides.first_tokens((1, CONCURRENT))
    shared, whole = (int(median(each.cached for each in side)) for side in (one, many))
    tokens = one[0].tokens
    what = f"first token of {CONCURRENT} of one program, {SHARED_TOKENS:,} tokens shared: {shared:,} cached"
    against = f"{CONCURRENT} programs: {whole:,} of {tokens:,} cached"
    waits = [[each.wait for each in side] for side in (one, many)]
    return [Ratio.of(sides.subject, what, against, waits[0], waits[1], "", unit="ms")]
