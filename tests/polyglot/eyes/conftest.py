"""What the tests of the eyes share: the shipped language model, frozen, and its tokenizer with pictures."""

import pytest
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from saegis_lab.polyglot.eyes.checkpoint import new_seeing, seeing_tokenizer
from saegis_lab.polyglot.eyes.steps import language_model
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.reference import MODEL
from tests.polyglot.eyes.sets import SMALL


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    return language_model()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return seeing_tokenizer(MODEL)


@pytest.fixture
def seeing(loaded: LoadedModel, tokenizer: PreTrainedTokenizerBase) -> LlavaForConditionalGeneration:
    return new_seeing(loaded.model, tokenizer, SMALL, 0)
