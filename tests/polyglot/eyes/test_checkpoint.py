"""The folder that sees: the language model is bit for bit what it was, and Transformers reads all of it."""

from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from saegis_lab.polyglot.corpus import PAD
from saegis_lab.polyglot.eyes.asking import IMAGE, prompt
from saegis_lab.polyglot.eyes.checkpoint import added_parameters, save_seeing, seeing_processor
from saegis_lab.polyglot.eyes.streams import Rows, streams
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.reference import MODEL
from tests.polyglot.eyes.sets import SMALL

SAID = "Tell me about the cat."


def test_no_token_moves(loaded: LoadedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    before = AutoTokenizer.from_pretrained(str(MODEL))
    assert {**before.get_vocab(), IMAGE: len(before)} == tokenizer.get_vocab()
    for messages in ([{"role": "user", "content": SAID}], [{"role": "system", "content": "Да."}]):
        assert before.apply_chat_template(messages, tokenize=False) == tokenizer.apply_chat_template(
            messages, tokenize=False
        )


def test_text_is_told_of_as_before(
    loaded: LoadedModel, tokenizer: PreTrainedTokenizerBase, seeing: LlavaForConditionalGeneration
) -> None:
    ids = torch.tensor([tokenizer(prompt(SAID), add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        before, after = loaded.model(input_ids=ids).logits, seeing(input_ids=ids).logits
    assert torch.equal(before, after[..., :-1])
    pad = tokenizer.convert_tokens_to_ids(PAD)
    assert torch.equal(after[..., -1], after[..., pad])
    assert float(after.softmax(-1)[..., -1].max()) < 1e-4


def test_the_folder_holds_all_of_it(
    tmp_path: Path,
    loaded: LoadedModel,
    tokenizer: PreTrainedTokenizerBase,
    seeing: LlavaForConditionalGeneration,
) -> None:
    folder = tmp_path / "model"
    save_seeing(seeing, seeing_processor(tokenizer, SMALL), folder, MODEL)
    assert not (tmp_path / "model.tmp").exists()
    read = LlavaForConditionalGeneration.from_pretrained(str(folder), dtype=torch.float32)
    for name, kept in read.state_dict().items():
        wanted = seeing.state_dict()[name].bfloat16().float()
        torch.testing.assert_close(kept.float(), wanted, rtol=0.0, atol=0.0)
    assert added_parameters(read) < 100_000
    processor = AutoProcessor.from_pretrained(str(folder))  # type: ignore[no-untyped-call]
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert text == prompt(f"{IMAGE}Why?")
    given = processor(
        text=[text],
        images=[Image.new("RGB", (40, 30), "red")],
        text_kwargs={"add_special_tokens": False},
        return_tensors="pt",
    )
    assert int((given["input_ids"] == read.config.image_token_id).sum()) == SMALL.patches
    red = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None].expand(1, 3, SMALL.side, SMALL.side)
    torch.testing.assert_close(given["pixel_values"], red)
    seen = read.get_image_features(pixel_values=given["pixel_values"], return_dict=True).pooler_output
    assert seen[0].shape == (SMALL.patches, loaded.model.config.hidden_size)


def test_rows_with_pictures_run_as_transformers_runs_them(
    loaded: LoadedModel, tokenizer: PreTrainedTokenizerBase, seeing: LlavaForConditionalGeneration
) -> None:
    """The trainings' own way through the language model gives LLaVA's numbers."""
    from saegis_lab.polyglot.eyes.asking import Asked
    from saegis_lab.polyglot.eyes.eyes import Eyes

    asked = [
        Asked(0, prompt(f"{IMAGE}What?"), prompt(SAID), "The cat drinks milk.<|end|>"),
        Asked(1, prompt(f"Why {IMAGE}"), prompt(SAID), "No.<|end|>"),
    ]
    rows = Rows.of(loaded.tokenizer, asked, SMALL.patches, words=False)
    pictures = torch.rand(2, 3, SMALL.side, SMALL.side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = streams(loaded.model, rows, 3, Eyes(seeing)(pictures))
        for row, each in enumerate(asked):
            text = each.picture.replace(IMAGE, IMAGE * SMALL.patches) + each.answer
            ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
            told = seeing(
                input_ids=ids, pixel_values=pictures[row : row + 1] * 2.0 - 1.0, output_hidden_states=True
            )
            at = rows.told(0)[0] == row
            wanted = told.logits[0, rows.ends[row] - 1 : -1, :-1].log_softmax(-1)
            torch.testing.assert_close(ours.following[at], wanted, atol=1e-4, rtol=1e-4)
            stream = told.hidden_states[4][0]
            torch.testing.assert_close(ours.all[row, : len(stream)], stream, atol=1e-3, rtol=1e-4)
