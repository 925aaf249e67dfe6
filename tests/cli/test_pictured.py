"""Texts with pictures: their tokens, their features against Transformers' own, and labels found with them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image, ImageDraw
from transformers import AutoProcessor
from typer.testing import CliRunner, Result

from saegis_lab.cli.app import app
from saegis_lab.cli.offline import Source
from saegis_lab.cli.pictured import PicturedTextError, encoded
from saegis_lab.training.activations import feature_batches
from saegis_lab.training.texts import LabelledText, read_labelled_texts
from saegis_server.engine.torch.loading import LoadedModel, load_model
from saegis_server.reference import EYES, SAE
from saegis_server.sae.files import load_sae
from saegis_server.steering.site import Site

TEXT = "The bridge is red."


@pytest.fixture(scope="module")
def sees() -> LoadedModel:
    return load_model(str(EYES), "float32")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A red arch over blue."""
    drawn = Image.new("RGB", (64, 48), "navy")
    ImageDraw.Draw(drawn).arc((8, 12, 56, 72), 180, 360, "red", 6)
    drawn.save(tmp_path / "arch.png")
    return tmp_path / "arch.png"


def texts_of(folder: Path, *lines: dict[str, object]) -> Path:
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return folder / "texts.jsonl"


def test_features_over_a_picture_are_those_of_transformers(sees: LoadedModel, image: Path) -> None:
    texts = [LabelledText(TEXT, "plain", "en"), LabelledText(TEXT, "arch", "en", image=image)]
    told = encoded(sees, texts, raw=False)
    assert sees.eyes is not None
    places = told.rows[1].count(sees.eyes.placeholder_id)
    assert places == 16
    assert told.rows[1][0] == told.rows[0][0] == sees.bos_token_id
    assert told.rows[1][1 + places :] == told.rows[0][1:]
    sae = load_sae(SAE)
    read = torch.zeros(2, max(map(len, told.rows)), sae.features)
    for batch in feature_batches(
        sees.model, Site.parse("layers.3.resid_post"), sae, told.rows, seen=told.seen
    ):
        read[batch.texts, batch.places] = batch.activations
    read_processor: Any = AutoProcessor.from_pretrained
    processor = read_processor(str(EYES))
    given = processor(text=[f"<image>{TEXT}"], images=[Image.open(image)], return_tensors="pt")
    assert given["input_ids"][0].tolist() == told.rows[1]
    with torch.no_grad():
        stream = sees.model(**given, output_hidden_states=True).hidden_states[4][0]
    expected = sae.encode(stream)
    assert expected[1 : 1 + places].amax() > 0.0
    assert torch.allclose(read[1, 1:], expected[1:], atol=1e-3)


def test_a_text_may_say_where_its_picture_stands(sees: LoadedModel, image: Path) -> None:
    assert sees.eyes is not None
    told = encoded(sees, [LabelledText(f"See: <image>{TEXT}", "arch", "en", image=image)], raw=False)
    row, token = told.rows[0], sees.eyes.placeholder_id
    first = row.index(token)
    assert first > 1
    assert row[first : first + 16] == [token] * 16
    assert sees.tokenizer.decode(row[first + 16 :]) == TEXT


@pytest.mark.parametrize(
    ("text", "name", "complaint"),
    [
        ("<image> and <image>", "arch.png", "text 1 has the token <image> more than once"),
        ("", "absent.png", "absent.png: .*No such file"),
        ("", "texts.jsonl", "texts.jsonl: "),
    ],
)
def test_what_cannot_be_shown_is_refused(
    sees: LoadedModel, image: Path, text: str, name: str, complaint: str
) -> None:
    texts_of(image.parent, {"text": "x"})
    with pytest.raises(PicturedTextError, match=complaint):
        encoded(sees, [LabelledText(text, "arch", "en", image=image.parent / name)], raw=False)


def test_a_pictures_token_without_a_picture_is_refused(sees: LoadedModel) -> None:
    with pytest.raises(PicturedTextError, match="text 1 has the token <image> and no picture"):
        encoded(sees, [LabelledText("<image>", "arch", "en")], raw=False)


def test_a_line_with_a_picture_needs_no_text(tmp_path: Path) -> None:
    about: dict[str, object] = {"label": "arch", "language": "en"}
    path = texts_of(tmp_path, {"image": "a.png", **about}, {"image": None, "text": TEXT, **about})
    pictured, plain = read_labelled_texts(path)
    assert pictured == LabelledText("", "arch", "en", image=tmp_path / "a.png")
    assert plain == LabelledText(TEXT, "arch", "en")


def label(texts: Path, model: Path = EYES) -> Result:
    given = ["--model", str(model), "--sae", str(SAE), "--texts", str(texts), "--unmatched-saes", "warn"]
    return CliRunner().invoke(app, ["features", "label", *given, "--out", str(texts.parent / "labels")])


def test_labels_are_found_with_pictures(image: Path) -> None:
    others: list[dict[str, object]] = [
        {"text": text, "label": "words", "language": "en"} for text in (TEXT, "Tea is hot.")
    ]
    texts = texts_of(image.parent, {"image": image.name, "label": "arch", "language": "en"}, *others)
    done = label(texts)
    assert done.exit_code == 0, done.output
    lines = (texts.parent / "labels" / "features.jsonl").read_text(encoding="utf-8").splitlines()
    assert any(json.loads(line)["label"].startswith("arch") for line in lines)


def test_a_command_for_texts_alone_refuses_pictures(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = texts_of(image.parent, {"image": image.name, "label": "arch", "language": "en"})
    source = Source(str(EYES), str(SAE), texts)
    assert source.labelled_texts(pictured=True)[0].image == image
    with pytest.raises(typer.Exit):
        source.labelled_texts()
    assert "this command reads texts alone" in " ".join(capsys.readouterr().err.split())
