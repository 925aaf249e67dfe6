"""The script that mends a tokenizer from a GGUF file: it cuts texts as before the conversion."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from tests.sweep.test_shipped_figures import script

MEND = script("gguf_tokenizer")
TEXTS = ("the court has adjourned until next week", "the witness was not there", "суд отложил заседание, суд")


def converted(folder: Path) -> Tokenizer:
    """A trained BPE tokenizer; in `folder` what a conversion makes of it."""
    trained = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True))
    trained.train_from_iterator(TEXTS, BpeTrainer(vocab_size=90, special_tokens=list(MEND.SPECIAL)))
    written = json.loads(trained.to_str())
    pieces = sorted(written["model"]["vocab"], key=written["model"]["vocab"].__getitem__)
    written["model"] = {"type": "Unigram", "unk_id": 3, "vocab": [[piece, -1000.0] for piece in pieces]}
    folder.mkdir()
    (folder / MEND.TOKENIZER).write_text(json.dumps(written), encoding="utf-8")
    (folder / MEND.CONFIG).write_text(json.dumps({"backend": "tokenizers"}), encoding="utf-8")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return trained


def test_texts_are_cut_as_before_the_conversion(tmp_path: Path) -> None:
    trained = converted(tmp_path / "from")
    MEND.main(tmp_path / "from", tmp_path / "to")
    mended = Tokenizer.from_file(str(tmp_path / "to" / MEND.TOKENIZER))
    for text in (*TEXTS, "<start_of_turn>the court<end_of_turn>"):
        assert mended.encode(text).tokens == ["<bos>", *trained.encode(text).tokens]
    assert (tmp_path / "to" / "config.json").exists()


def test_a_tokenizer_that_lost_nothing_is_left_alone(tmp_path: Path) -> None:
    converted(tmp_path / "from")
    MEND.main(tmp_path / "from", tmp_path / "to")
    with pytest.raises(SystemExit, match="nothing to mend"):
        MEND.main(tmp_path / "to", tmp_path / "again")


def test_the_byte_of_a_tab_is_told_from_a_tab() -> None:
    assert MEND.vocabulary(["<pad>", "\t", "a", "\t"]) == {"<pad>": 0, "<0x09>": 1, "a": 2, "\t": 3}
    with pytest.raises(ValueError, match="2 pieces"):
        MEND.vocabulary(["a", "a", "b", "b"])
