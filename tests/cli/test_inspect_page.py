"""The page of an inspection: it loads nothing, shows every token as text, and colours it by its feature."""

import re
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from saegis import (
    FeatureActivation,
    FeatureValues,
    Image,
    Inspection,
    PictureGrid,
    PictureTokens,
    TokenFeatures,
)
from saegis.cli.inspect_page import MOST_LISTED, page


class Reader(HTMLParser):
    """The elements of a page as a browser takes them: each with its attributes and the text right in it."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[list[str]] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in ("meta", "img"):
            self._open.append(self.elements[-1][2])

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self._open[-1].append(data)

    def of(self, kind: str) -> list[tuple[dict[str, str | None], str]]:
        """The attributes and the text of the elements of a kind."""
        return [(attributes, "".join(text)) for tag, attributes, text in self.elements if tag == kind]


def inspected(text: str, label: str) -> Inspection:
    first = TokenFeatures(0, "<s>", (FeatureActivation(9, 8.0, label),), left_out=True)
    second = TokenFeatures(1, text, (FeatureActivation(3, 2.0, label), FeatureActivation(9, 1.0, label)))
    return Inspection("sae", "layers.1", (first, second, TokenFeatures(2, "\n", ())))


def test_tokens_are_coloured_by_their_strongest_feature() -> None:
    found = Reader(page(inspected("bridge", "fog")))
    spans = found.of("span")
    assert [text for _, text in spans] == ["<s>", "bridge", "\n"]
    assert [attributes.get("class") for attributes, _ in spans] == ["left", None, None]
    assert spans[0][0]["style"] == "--h:0.0;--a:1.000", "feature 9 is the strongest over the text"
    assert spans[1][0]["style"] == "--h:137.5;--a:1.000"
    assert spans[1][0]["data-f"] == "3:2 9:1"
    assert spans[1][0]["title"] == "'bridge'\n3  2.00  fog\n9  1.00  fog"
    assert "style" not in spans[2][0]
    assert [(each["data-i"], text) for each, text in found.of("button")] == [
        ("9", "9 fog, up to 8.00"),
        ("3", "3 fog, up to 2.00"),
    ]


@given(text=st.text(), label=st.text())
def test_whatever_texts_and_labels_hold_stays_text(text: str, label: str) -> None:
    hostile = "</span><script>alert(1)</script><img src=x onerror=alert(1)>\"' {title} " + text
    source = page(inspected(hostile, hostile + label))
    found = Reader(source)
    assert len(found.of("script")) == 1
    assert not found.of("img")
    kept = re.sub(r"\r\n?", "\n", hostile).replace("\0", "\ufffd")
    told = found.of("span")[1][1]
    assert re.sub(r"\r\n?", "\n", told).replace("\0", "\ufffd") == kept
    allowed = {"title", "class", "style", "data-f", "data-i", "data-most", "type", "aria-pressed"}
    for kind in ("span", "button"):
        assert all(set(attributes) <= allowed for attributes, _ in found.of(kind))


def test_nothing_is_loaded() -> None:
    source = page(inspected("a", "b"))
    assert not re.search(r"https?:|\bsrc=|\bhref=|@import|url\(", source)
    policies = [
        attributes["content"] for attributes, _ in Reader(source).of("meta") if "http-equiv" in attributes
    ]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"]


def test_the_legend_is_bounded() -> None:
    features = tuple(FeatureActivation(index, 1.0 + index, "") for index in range(MOST_LISTED + 5))
    source = page(Inspection("s", "x", (TokenFeatures(0, "a", features),)))
    assert source.count("<li>") == MOST_LISTED
    assert f"{MOST_LISTED + 5} features; the strongest {MOST_LISTED}:" in source


def with_picture(grids: tuple[PictureGrid, ...]) -> Inspection:
    """A text of two tokens around a picture of four, at two of which feature 3 is active."""
    middle = [TokenFeatures(7, "<image>", ()) for _ in range(4)]
    tokens = [TokenFeatures(0, "a", ()), *middle, TokenFeatures(1, "b", ())]
    values = (FeatureValues(3, "bridge", (0.0, 0.0, 2.0, 0.0, 1.0, 0.0)),)
    picture = PictureTokens("0" * 64, 40, 20, 1, 4, grids)
    return Inspection("sae", "layers.1", tuple(tokens), values, pictures=(picture,))


def test_a_features_strength_lies_over_the_picture() -> None:
    file = Image(b"\x89PNG\r\n\x1a\n")
    source = page(with_picture((PictureGrid(1, 2, 2, 0.25, 0.0, 0.75, 1.0),)), [file])
    found = Reader(source)
    assert "img-src data:" in source
    (shown,) = found.of("img")
    assert shown[0]["src"] == "data:image/png;base64,iVBORw0KGgo="
    assert [text for _, text in found.of("span")] == ["a", "b"], (
        "the picture stands in the place of its tokens"
    )
    cells = [attributes["style"] for attributes, _ in found.of("i")]
    assert cells == [
        "--a:0;left:25.000%;top:0.000%;width:25.000%;height:50.000%",
        "--h:0.0;--a:1.000;left:50.000%;top:0.000%;width:25.000%;height:50.000%",
        "--a:0;left:25.000%;top:50.000%;width:25.000%;height:50.000%",
        "--h:0.0;--a:0.500;left:50.000%;top:50.000%;width:25.000%;height:50.000%",
    ]
    ((button, name),) = found.of("button")
    assert (button["data-i"], "data-first" in button, name) == ("3", True, "3 bridge, up to 2.00")


def test_a_picture_without_grids_stays_its_tokens() -> None:
    found = Reader(page(with_picture(()), [Image(b"x")]))
    assert [text for _, text in found.of("span")] == ["a", *["<image>"] * 4, "b"]
    assert not found.of("img")
