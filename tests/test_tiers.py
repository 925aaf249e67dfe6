"""The quick tier and the rest are all tests at their full size."""

from pathlib import Path

import pytest

from tests import tiers

TESTS = Path(__file__).parent


def test_only_tests_take_a_size() -> None:
    """A size that a helper took would make tests larger that do not tell so."""
    for file in TESTS.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if f"from {tiers.__name__} import" in text and file != Path(__file__):
            assert file.name.startswith("test_")
            assert tiers.is_in_rest(file)
            assert tiers.sized_tests(file), f"{file} takes a size for no test"


MODULE = """
from tests.tiers import few, sized
COUNT, OTHER = sized(9, 3), 2
UNSIZED: int = 4
def helper():
    return COUNT
@fixture(params=few([1, 2], 1))
def one(request): ...
@fixture
def two(one): ...
def test_body(): range(sized(5, 1))
@parametrize("a", few([1], 1))
async def test_decorator(a): ...
def test_constant(): return OTHER
def test_helper(): helper()
def test_fixture(two): ...
def test_none(three): return UNSIZED
class test_class:
    def test_within(self): return COUNT
"""


def test_a_test_is_sized_by_whatever_it_names(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(MODULE, "utf-8")
    names = ("body", "decorator", "constant", "helper", "fixture", "class")
    assert tiers.sized_tests(tmp_path / "test_it.py") == {f"test_{name}" for name in names}


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("from tests.tiers import few", True),
        ("@pytest.mark.slow\ndef test_it(): ...", True),
        ("pytestmark = [pytest.mark.alone, pytest.mark.slow]", True),
        ("def test_it(): ...", False),
    ],
)
def test_the_rest_is_read_from_files_with_what_is_slow_or_sized(
    tmp_path: Path, text: str, rest: bool
) -> None:
    (tmp_path / "test_it.py").write_text(text, "utf-8")
    assert tiers.is_in_rest(tmp_path / "test_it.py") is rest
    assert tiers.is_marked(tmp_path / "test_it.py", "alone") is ("alone" in text)
