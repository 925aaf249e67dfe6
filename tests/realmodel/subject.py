"""A random model of Gemma's architecture with a tokenizer that has Gemma's turns."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from saegis_lab.realmodel.chats import Chats

_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]


def tokenizer(chats: Chats, size: int = 2000) -> PreTrainedTokenizerFast:
    """A byte-level BPE of what the chats say, which puts <bos> before a text."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    texts = [text for chat in chats.training(40, 0) for text in (chat.request, chat.answer)]
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    make: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = make(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    return made


def write_gemma(folder: Path, chats: Chats, width: int = 64) -> None:
    """Write a random Gemma 3 of four layers and its tokenizer, which has no chat template."""
    made = tokenizer(chats)
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(made),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=width // 4,
        sliding_window=64,
        max_position_embeddings=1024,
        initializer_range=0.15,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    made.save_pretrained(str(folder))
