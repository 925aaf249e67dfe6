"""The page of `saegis inspect --html`: a text with its tokens coloured by feature, in one file of its own."""

from __future__ import annotations

from collections import defaultdict
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saegis import Inspection, TokenFeatures

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
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
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
</style>
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
const spans = [...document.querySelectorAll("#text span")];
const buttons = [...document.querySelectorAll("button")];
for (const span of spans) span.all = span.style.cssText;
for (const button of buttons) button.onclick = () => {{
  const alone = button.getAttribute("aria-pressed") !== "true";
  for (const other of buttons) other.setAttribute("aria-pressed", alone && other === button);
  const hue = button.style.getPropertyValue("--h"), most = Number(button.dataset.most);
  for (const span of spans) {{
    if (!alone) {{ span.style.cssText = span.all; continue; }}
    const pair = (span.dataset.f || "").split(" ").find(each => each.startsWith(button.dataset.i + ":"));
    span.style.cssText = pair ? `--h:${{hue}};--a:${{Number(pair.split(":")[1]) / most}}` : "";
  }}
}};
</script>
</body>
</html>
"""


def page(inspection: Inspection) -> str:
    """An HTML document that shows an inspection. Texts and labels stand in it as text, whatever they hold."""
    most: dict[int, float] = defaultdict(float)
    total: dict[int, float] = defaultdict(float)
    labels: dict[int, str] = {}
    for token in inspection:
        for feature in token.features:
            most[feature.index] = max(most[feature.index], feature.activation)
            total[feature.index] += feature.activation
            labels[feature.index] = feature.label
    ranked = sorted(total, key=lambda index: (-total[index], index))
    hues = {index: round(place * _GOLDEN_ANGLE % 360.0, 1) for place, index in enumerate(ranked)}
    listed = ranked[:MOST_LISTED]
    windows = f" in {inspection.windows} windows" if inspection.windows > 1 else ""
    told = f"{len(inspection)} tokens{windows}, {len(ranked)} features"
    return _PAGE.format(
        title=escape(f"{inspection.sae} at {inspection.site}"),
        tokens="".join(_token(token, hues, most) for token in inspection),
        legend="\n".join(_entry(index, labels[index], hues[index], most[index]) for index in listed),
        count=told + (f"; the strongest {len(listed)}:" if len(listed) < len(ranked) else ":"),
    )


def _token(token: TokenFeatures, hues: dict[int, float], most: dict[int, float]) -> str:
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
    return f"<span {' '.join(attributes)}>{escape(token.text)}</span>"


def _entry(index: int, label: str, hue: float, most: float) -> str:
    name = escape(label) or "(no label)"
    return (
        f'<li><button type="button" aria-pressed="false" data-i="{index}" data-most="{most:.4g}" '
        f'style="--h:{hue}">{index} {name}, up to {most:.2f}</button></li>'
    )


def _attribute(lines: Sequence[str]) -> str:
    """Lines as the value of an attribute."""
    return escape("\n".join(lines)).replace("\n", "&#10;")
