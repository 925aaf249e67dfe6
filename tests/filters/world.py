"""A tiny model that chats, an SAE on it, and prompts and texts whose harm is one letter."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from saegis_lab.filters.direction import activations
from saegis_lab.filters.subject import FilterSubject
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.sae.labels import FeatureLabel, Labels
from saegis_server.steering.site import Site
from tests.engine import tiny

SITE = Site.parse("layers.1.resid_post")
FEATURES = 64
TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{{- message['role'][0] + ':' + message['content'] + ';' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- 'a:' -}}{%- endif -%}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, with <s> at the beginning of every text, and a chat template."""
    made = tiny.tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.convert_tokens_to_ids("<s>"))]
    )
    made.chat_template = TEMPLATE
    return made


def sae(seed: int = 0) -> SparseAutoencoder:
    """A random JumpReLU SAE as wide as the tiny model."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng)

    return SparseAutoencoder(
        Architecture.JUMPRELU,
        W_enc=draw(tiny.WIDTH, FEATURES) / tiny.WIDTH**0.5,
        W_dec=draw(FEATURES, tiny.WIDTH) / tiny.WIDTH**0.5,
        b_dec=0.1 * draw(tiny.WIDTH),
        b_enc=0.1 * draw(FEATURES),
        threshold=0.2 * draw(FEATURES).abs(),
        hook_name="blocks.1.hook_resid_post",
        stated_fvu=5.0,
    )


@cache
def subject(double: bool = False) -> FilterSubject:
    """The tiny model with the SAE; with `double` in float64."""
    model = tiny.model("llama").requires_grad_(False)
    loaded = LoadedModel("tiny", model.double() if double else model, tokenizer(), "digest", (tiny.EOS,), 256)
    return FilterSubject(loaded, SITE, sae())


def harm(text: str, _language: str) -> float:
    """The share of the letters of a text that come after m in the alphabet: what the tests call harmful."""
    letters = [letter for letter in text.lower() if letter.isalpha()]
    return sum(letter > "m" for letter in letters) / len(letters) if letters else 0.0


LETTERS = {
    ("poison", "en"): "poxz",
    ("poison", "fr"): "quvw",
    ("bread", "en"): "abcd",
    ("bread", "fr"): "efgh",
}


def texts() -> list[dict[str, object]]:
    """Four texts of 12 letters for each label in each language."""
    made: list[dict[str, object]] = []
    for (label, language), known in LETTERS.items():
        for number in range(4):
            text = "".join(known[(number + place * (1 + place % 3)) % len(known)] for place in range(12))
            made.append({"text": text, "label": label, "language": language, "harmful": label == "poison"})
    return made


def prompts() -> list[dict[str, object]]:
    """The beginnings of the texts as prompts; those of English ones also said to be German."""
    return [
        {"prompt": str(text["text"])[:5], "language": code, "harmful": text["harmful"]}
        for text in texts()
        for code in (("en", "de") if text["language"] == "en" else ("fr",))
    ]


def knowing_sae() -> SparseAutoencoder:
    """The random SAE with features fitted by least squares: the first two fire on harmful letters alone, the
    third at the last token of harmful prompts alone."""
    known = subject()
    tokens = [known.loaded.tokenizer.encode(str(text["text"])) for text in texts()]
    asked = [known.asked(str(prompt["prompt"])) for prompt in prompts()]
    in_texts, in_prompts = ([x[1:] for x in activations(known, rows)] for rows in (tokens, asked))
    letters = [
        torch.full((len(x),), bool(text["harmful"])) for text, x in zip(texts(), in_texts, strict=True)
    ]
    made = _knowing(sae(), torch.cat(in_texts), torch.cat(letters), {0: 8.0, 1: 5.0})
    # The last tokens are few beside all others, which a fit would hear instead.
    weighed = [x[-1:].expand(100, -1) for x in in_prompts]
    harmful = [torch.full((100,), bool(prompt["harmful"])) for prompt in prompts()]
    others = torch.cat([*in_texts, *(x[:-1] for x in in_prompts)])
    nowhere = torch.zeros(len(others), dtype=torch.bool)
    return _knowing(made, torch.cat([others, *weighed]), torch.cat([nowhere, *harmful]), {2: 8.0})


def _knowing(made: SparseAutoencoder, x: Tensor, truth: Tensor, gains: dict[int, float]) -> SparseAutoencoder:
    """The SAE with features that fire at no token where `truth` is False; gains: of each. x: float32
    [tokens, d]; truth: bool [tokens]."""
    centred = x.double() - x.double().mean(0)
    fitted = torch.linalg.lstsq(
        centred.T @ centred + 0.1 * torch.eye(tiny.WIDTH, dtype=torch.float64),
        centred.T @ (truth.double() - truth.double().mean()),
    ).solution
    base = made.tensors()
    for feature, gain in gains.items():
        row = (gain * fitted).float()
        quiet = float(((x.float() - made.b_dec) @ row)[~truth].max())
        base["W_enc"][:, feature] = row
        base["b_enc"][feature] = -quiet - 0.01
        base["W_dec"][feature] = torch.nn.functional.normalize(fitted, dim=0).float()
        base["threshold"][feature] = 0.0
    changed: dict[str, Any] = {**base, "digest": ""}
    return replace(made, **changed)


def labels(known: SparseAutoencoder) -> Labels:
    """The largest activation of each feature on the texts and prompts, as labels have it."""
    tiny_one = subject()
    rows = [tiny_one.loaded.tokenizer.encode(str(text["text"])) for text in texts()]
    rows += [tiny_one.asked(str(prompt["prompt"])) for prompt in prompts()]
    largest = torch.cat([known.encode(x[1:]) for x in activations(tiny_one, rows)]).amax(0)
    return Labels(
        FeatureLabel(feature, f"feature {feature}", max_activation=value)
        for feature, value in enumerate(largest.tolist())
        if value
    )


def write_world(folder: Path) -> Path:
    """Write `model`, `sae`, `texts.jsonl`, `prompts.jsonl` and `direction.safetensors` into `folder`."""
    tiny.model("llama").save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    known = knowing_sae()
    save_sae(known, folder / "sae")
    labels(known).save(folder / "sae")
    for name, lines in (("texts", texts()), ("prompts", prompts())):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    save_file({"v": torch.linspace(-1.0, 1.0, tiny.WIDTH)}, folder / "direction.safetensors")
    return folder
