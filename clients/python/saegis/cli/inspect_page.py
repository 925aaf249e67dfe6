"""The page of `saegis inspect --html`: a text with its tokens coloured by feature, in one file of its own."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING

from saegis.cli.picture_heat import STYLE, figures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from saegis import FeatureValues, Image, Inspection, TokenFeatures

#: The most features of which the page has a legend; the strongest over the text.
MOST_LISTED = 100
#: A step around the circle of hues after which neighbours differ much and few are ever alike.
_GOLDEN_ANGLE = 137.508

# Nothing is loaded from anywhere, and nothing but the script below runs.
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'{sources}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.7 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }}
h1 {{ font-size: 1.1rem; }}
#text {{ white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #ccc; border-radius: 6px;
  padding: 1rem; }}
#text span {{ border-radius: 3px; background: hsl(var(--h) 85% 60% / var(--a, 0)); }}
#text span.left {{ color: #888; font-style: italic; }}
ol {{ list-style: none; padding: 0; columns: 2 22rem; }}
button {{ font: inherit; text-align: left; width: 100%; border: 0; padding: .1rem .5rem; cursor: pointer;
  border-left: 1rem solid hsl(var(--h) 85% 60%); background: none; }}
button[aria-pressed=true] {{ background: #eee; font-weight: 600; }}
p {{ color: #555; }}
{style}</style>
</head>
<body>
<h1>{title}</h1>
<p>Each token has the colour of its strongest feature, deeper where that is nearer to its greatest activation
in this text. Point at a token for its features; choose a feature to see it alone.</p>
<div id="text">{tokens}</div>
<p>{count}</p>
<ol>
{legend}
</ol>
<script>
const spans = [...document.querySelectorAll("#text span, #text i")];
const buttons = [...document.querySelectorAll("button")];
for (const span of spans) span.all = [span.style.getPropertyValue("--h"), span.style.getPropertyValue("--a")];
const paint = (span, hue, depth) => {{
  span.style.setProperty("--h", hue);
  span.style.setProperty("--a", depth);
}};
for (const button of buttons) button.onclick = () => {{
  const alone = button.getAttribute("aria-pressed") !== "true";
  for (const other of buttons) other.setAttribute("aria-pressed", alone && other === button);
  const hue = button.style.getPropertyValue("--h"), most = Number(button.dataset.most);
  for (const span of spans) {{
    if (!alone) {{ paint(span, ...span.all); continue; }}
    const pair = (span.dataset.f || "").split(" ").find(each => each.startsWith(button.dataset.i + ":"));
    paint(span, hue, pair ? Number(pair.split(":")[1]) / most : 0);
  }}
}};
document.querySelector("button[data-first]")?.click();
</script>
</body>
</html>
"""


def page(inspection: Inspection, images: Sequence[Image] = ()) -> str:
    """An HTML document that shows an inspection. Texts and labels stand in it as text, whatever they hold.

    images: the files of its pictures, in their order, which the page then holds. A feature whose values were
    asked for is shown alone at first, the first one of several.
    """
    for chosen in inspection.values:
        inspection = _with(inspection, chosen)
    first = {each.index for each in inspection.values[:1]}
    most: dict[int, float] = defaultdict(float)
    total: dict[int, float] = defaultdict(float)
    labels: dict[int, str] = {}
    for token in inspection:
        for feature in token.features:
            most[feature.index] = max(most[feature.index], feature.activation)
            total[feature.index] += feature.activation
            labels[feature.index] = feature.label
    ranked = sorted(total, key=lambda index: (index not in first, -total[index], index))
    hues = {index: round(place * _GOLDEN_ANGLE % 360.0, 1) for place, index in enumerate(ranked)}
    listed = ranked[:MOST_LISTED]
    windows = f" in {inspection.windows} windows" if inspection.windows > 1 else ""
    told = f"{len(inspection)} tokens{windows}, {len(ranked)} features"
    return _PAGE.format(
        title=escape(f"{inspection.sae} at {inspection.site}"),
        style=STYLE,
        sources="; img-src data:" if images else "",
        tokens="".join(_written(inspection, images, hues, most)),
        legend="\n".join(
            _entry(index, labels[index], hues[index], most[index], index in first) for index in listed
        ),
        count=told + (f"; the strongest {len(listed)}:" if len(listed) < len(ranked) else ":"),
    )


def _with(inspection: Inspection, values: FeatureValues) -> Inspection:
    """An inspection in which a feature stands among those of every token at which it is active."""
    from saegis import FeatureActivation

    tokens = []
    for token, value in zip(inspection.tokens, values.activations, strict=True):
        if value > 0.0 and all(each.index != values.index for each in token.features):
            added = FeatureActivation(index=values.index, activation=value, label=values.label)
            token = replace(token, features=(*token.features, added))
        tokens.append(token)
    return replace(inspection, tokens=tuple(tokens))


def _written(
    inspection: Inspection, images: Sequence[Image], hues: dict[int, float], most: dict[int, float]
) -> Iterator[str]:
    """The tokens, and in the place of those of a picture the picture."""
    told, cell = iter(inspection.tokens), _cell_of(hues, most)
    at = 0
    for picture, image in zip(inspection.pictures, images, strict=False):
        shown = figures(picture, image, inspection.tokens, cell)
        end = picture.first_token + (picture.token_count if shown else 0)
        while at < end:
            token = next(told)
            if at < picture.first_token:
                yield _token(token, hues, most)
            at += 1
        yield shown
    yield from (_token(token, hues, most) for token in told)


def _cell_of(hues: dict[int, float], most: dict[int, float]) -> Callable[[TokenFeatures], str]:
    """Makes the attributes of a picture's cell, the style of which is left open."""

    def cell(token: TokenFeatures) -> str:
        attributes = _attributes(token, hues, most)
        style = next((each for each in attributes if each.startswith("style=")), 'style="--a:0"')
        others = [each for each in attributes if not each.startswith("style=")]
        return " ".join((*others, style[:-1]))

    return cell


def _token(token: TokenFeatures, hues: dict[int, float], most: dict[int, float]) -> str:
    attributes = _attributes(token, hues, most)
    return f"<span {' '.join(attributes)}>{escape(token.text)}</span>"


def _attributes(token: TokenFeatures, hues: dict[int, float], most: dict[int, float]) -> list[str]:
    """The attributes of a token: what it tells, its colour, and its features for the script."""
    lines = [
        repr(token.text),
        *(f"{each.index}  {each.activation:.2f}  {each.label}" for each in token.features),
    ]
    attributes = [f'title="{_attribute(lines)}"']
    if token.left_out:
        attributes.append('class="left"')
    if token.features:
        strongest = token.features[0]
        depth = strongest.activation / most[strongest.index]
        attributes.append(f'style="--h:{hues[strongest.index]};--a:{depth:.3f}"')
        pairs = " ".join(f"{each.index}:{each.activation:.4g}" for each in token.features)
        attributes.append(f'data-f="{pairs}"')
    return attributes


def _entry(index: int, label: str, hue: float, most: float, is_first: bool) -> str:
    name, first = escape(label) or "(no label)", " data-first" if is_first else ""
    return (
        f'<li><button type="button" aria-pressed="false" data-i="{index}" data-most="{most:.4g}"{first} '
        f'style="--h:{hue}">{index} {name}, up to {most:.2f}</button></li>'
    )


def _attribute(lines: Sequence[str]) -> str:
    """Lines as the value of an attribute."""
    return escape("\n".join(lines)).replace("\n", "&#10;")
