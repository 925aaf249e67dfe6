"""Tests of the plots: PNG files of the right size that show what the result holds."""

import struct
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from saegis_lab.evaluation.calibration import BanReport
from saegis_lab.evaluation.plots import DOTS_PER_INCH, plot_ban, plot_clamp
from tests.evaluation.samples import ban_result, clamp_result

GREY, BLUE = (0x9A, 0xA5, 0xB1), (0x00, 0x72, 0xB2)
LANGUAGES = ("en", "de", "ru", "zh")


def size(path: Path) -> tuple[int, int]:
    """Width and height from the header of a PNG file."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def pixels(path: Path, colour: tuple[int, int, int]) -> int:
    """How many pixels have exactly this colour."""
    image = np.rint(np.asarray(imread(path))[..., :3] * 255).astype(int)
    return int((image == np.array(colour)).all(axis=-1).sum())


def report(
    harm: float, strengths: tuple[float, ...] = (2.0,), temperatures: tuple[float, ...] = (0.0,)
) -> BanReport:
    table = {code: (0.4, *(harm for _ in strengths)) for code in LANGUAGES}
    kl = {code: tuple(0.01 for _ in strengths) for code in LANGUAGES}
    result = ban_result(table, kl, strengths, temperatures)
    return BanReport.of(result, ["en", "zh"])


def test_bars_are_as_tall_as_harm_is(tmp_path: Path) -> None:
    path = tmp_path / "ban.png"
    areas = []
    for harm in (0.1, 0.4):
        plot_ban(report(harm), path)
        areas.append((pixels(path, GREY), pixels(path, BLUE)))
    assert size(path) == (round(3.4 * DOTS_PER_INCH), round(3.1 * DOTS_PER_INCH))
    before = areas[0][0]
    assert before > 5_000
    for harm, (grey, blue) in zip((0.1, 0.4), areas, strict=True):
        assert grey == pytest.approx(before, rel=0.05)
        assert blue == pytest.approx(before * harm / 0.4, rel=0.12)


def test_several_strengths_add_two_panels_of_lines_and_temperatures_rows(tmp_path: Path) -> None:
    one, several, two_rows = (tmp_path / f"{name}.png" for name in ("one", "several", "rows"))
    plot_ban(report(0.1), one)
    plot_ban(report(0.1, (0.0, 1.0, 2.0)), several)
    plot_ban(report(0.1, (0.0, 1.0, 2.0), (0.0, 0.8)), two_rows)
    assert size(several)[0] == size(one)[0] + round(2 * 3.7 * DOTS_PER_INCH)
    assert size(two_rows)[0] == size(several)[0]
    assert size(two_rows)[1] == size(several)[1] + round(3.1 * DOTS_PER_INCH)


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    harm = {"en": (0.4, 0.1, 0.0), "de": (None, None, None), "zh": (0.3, 0.2, 0.1)}
    kl = {"en": (0.01, 0.02), "de": (0.01, 0.02), "zh": (None, None)}
    plot_ban(BanReport.of(ban_result(harm, kl, (0.0, 1.0)), ()), tmp_path / "ban.png")
    values, mentions = (0.0, 1.0), {"en": (0.0, 0.0, 1.0)}
    plot_clamp(clamp_result(values, mentions, (4.0, 4.0, None)), tmp_path / "clamp.png")
    assert pixels(tmp_path / "ban.png", BLUE) > 1000
    assert pixels(tmp_path / "clamp.png", BLUE) > 100


def test_a_clamps_curve_has_a_line_for_each_language(tmp_path: Path) -> None:
    values = (0.0, 1.0, 1.1, 4.0)
    path = tmp_path / "clamp.png"
    perplexities = (4.0, 4.0, 8.0, 400.0, 4e7)
    plot_clamp(clamp_result(values, {"en": (0.0, 0.0, 0.5, 0.9, 1.0)}, perplexities), path)
    assert size(path) == (round(3 * 3.7 * DOTS_PER_INCH), round(3.4 * DOTS_PER_INCH))
    vermilion = (0xD5, 0x5E, 0x00)
    assert pixels(path, BLUE) > 500
    assert pixels(path, vermilion) == 0
    both = {"en": (0.0, 0.0, 0.5, 0.9, 1.0), "de": (0.0, 0.1, 0.2, 0.3, 0.4)}
    plot_clamp(clamp_result(values, both, perplexities), path)
    assert pixels(path, vermilion) > 500


def test_a_single_value_can_be_drawn(tmp_path: Path) -> None:
    plot_clamp(clamp_result((2.0,), {"en": (0.0, 1.0)}, (4.0, 5.0)), tmp_path / "clamp.png")
    assert size(tmp_path / "clamp.png")[1] == round(3.4 * DOTS_PER_INCH)
