"""A tiny model whose embeddings have a known meaning, an SAE that reads it, and labelled texts."""

import json
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from torch import nn

from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.formats.saelens import save_sae
from tests.engine.tiny import WIDTH, model, tokenizer

#: The letters of each label in each language. Feature 0 fires on poison in English, 1 in French, 2 in both.
LETTERS = {
    ("poison", "en"): "po",
    ("poison", "fr"): "qu",
    ("bread", "en"): "br",
    ("bread", "fr"): "cs",
    ("river", "fr"): "xyz",
}
MEANINGS = {0: [("poison", "en")], 1: [("poison", "fr")], 2: [("poison", "en"), ("poison", "fr")]}


def write_world(folder: Path) -> Path:
    """Write `model`, `sae` and `texts.jsonl` into `folder`. The tokenizer begins every text with <s>."""
    made = tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.convert_tokens_to_ids("<s>"))]
    )
    lm = model("llama")
    table = lm.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    embeddings = torch.zeros_like(table.weight)
    # Every token has a place of its own behind those of the meanings, so that activations vary.
    for token in range(len(embeddings)):
        embeddings[token, len(MEANINGS) + token % (WIDTH - len(MEANINGS))] = 1.0 + token % 3
    for feature, groups in MEANINGS.items():
        for letter in "".join(LETTERS[group] for group in groups):
            embeddings[made.encode(letter, add_special_tokens=False)[0], feature] = 2.0 + feature
    with torch.no_grad():
        table.weight.copy_(embeddings)
    lm.save_pretrained(folder / "model")
    made.save_pretrained(folder / "model")
    save_sae(sae(), folder / "sae")
    write_texts(folder / "texts.jsonl")
    return folder


def sae() -> SparseAutoencoder:
    """One feature for each coordinate: what it reads of an embedding is exact."""
    eye = torch.eye(WIDTH)
    return SparseAutoencoder(
        Architecture.STANDARD,
        W_enc=eye,
        W_dec=eye.clone(),
        b_dec=torch.zeros(WIDTH),
        b_enc=torch.zeros(WIDTH),
        hook_name="blocks.0.hook_resid_pre",
        stated_fvu=0.0,
    )


def write_texts(path: Path, opening: str = "") -> None:
    """Write 8 texts of 12 letters for each label in each language; `opening` stands before each."""
    lines = []
    for (label, language), letters in LETTERS.items():
        for number in range(8):
            text = "".join(letters[(number + place // 2 * (place % 5)) % len(letters)] for place in range(12))
            entry = {"text": opening + text, "label": label, "language": language}
            lines.append(json.dumps(entry | ({"harmful": True} if label == "poison" else {})))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
