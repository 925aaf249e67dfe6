"""Gives a Gemma 3 tokenizer back what its conversion from a GGUF file lost: `gguf_tokenizer.py FROM TO`.

Transformers makes a unigram model of the file's vocabulary, without scores that mean anything, so that every
text is cut into single characters. Gemma's is a BPE model: pieces are merged in the order of their ids. TO
gets that, the tokens of turns as special ones, and a first token before every text; the other files of FROM
are linked there.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
#: The byte that the conversion writes as the character that it stands for, which is another piece.
TAB, TAB_BYTE = "\t", "<0x09>"


def vocabulary(pieces: list[str]) -> dict[str, int]:
    """The ids of the pieces. Raises ValueError where two of them are the same."""
    if pieces.count(TAB) == 2:
        pieces = list(pieces)
        pieces[pieces.index(TAB)] = TAB_BYTE
    ids = {piece: number for number, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        raise ValueError(f"{len(pieces) - len(ids)} pieces of the vocabulary are there twice")
    return ids


def merges(ids: dict[str, int]) -> list[list[str]]:
    """Every way to make a piece of two, those of the first pieces first."""
    made = []
    for piece, number in ids.items():
        if piece in SPECIAL or (piece.startswith("<0x") and piece.endswith(">")):
            continue
        cuts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [(left, right) for left, right in cuts if left in ids and right in ids]
        made += [(number, ids[left], ids[right], left, right) for left, right in known]
    return [[left, right] for *_, left, right in sorted(made)]


def mended(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer as a BPE model."""
    ids = vocabulary([piece for piece, _ in tokenizer["model"]["vocab"]])
    model = {
        "type": "BPE",
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": ids,
        "merges": merges(ids),
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first, text = {"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    known = {"<bos>": {"id": "<bos>", "ids": [ids["<bos>"]], "tokens": ["<bos>"]}}
    return {
        **tokenizer,
        "model": model,
        "added_tokens": [{"id": ids[token], "content": token, **flags} for token in SPECIAL],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, text],
            "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": known,
        },
    }


def main(source: Path, out: Path) -> None:
    """Write the mended tokenizer, and link what else is in `source`."""
    tokenizer = json.loads((source / TOKENIZER).read_text(encoding="utf-8"))
    if tokenizer["model"]["type"] != "Unigram":
        raise SystemExit(f"{source / TOKENIZER} is no unigram model: there is nothing to mend")
    out.mkdir(parents=True)
    for path in source.iterdir():
        if path.name not in (TOKENIZER, CONFIG):
            try:
                (out / path.name).hardlink_to(path)
            except OSError:
                shutil.copy(path, out / path.name)
    (out / TOKENIZER).write_text(json.dumps(mended(tokenizer), ensure_ascii=False), encoding="utf-8")
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    kept = {name: value for name, value in config.items() if name not in ("backend", "model_type")}
    (out / CONFIG).write_text(json.dumps(kept, indent=2), encoding="utf-8")
    print(f"{out}: {len(tokenizer['model']['vocab']):,} pieces")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
