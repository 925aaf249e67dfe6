"""Loading: a model and its tokenizer from a local directory or a hub id, safetensors only."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from saegis_server.engine.torch.attention import UnsupportedModelError
from saegis_server.engine.torch.seeing import TowerEyes, sees, why_blind

#: The names under which `--dtype` offers the dtypes that the engine runs in.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CUDA = re.compile("cuda(:(?P<number>[0-9]{1,3}))?")


class ModelLoadError(ValueError):
    """A model that cannot be loaded or served, and why."""


class MachineError(ModelLoadError):
    """A device or a dtype that is none, or that this machine does not have."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model ready to serve. `digest` is the SHA-256 over its weights, names included.

    eyes: None for one that sees no pictures.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    digest: str
    eos_token_ids: tuple[int, ...]
    max_context: int
    eyes: TowerEyes | None = None

    @property
    def bos_token_id(self) -> int | None:
        """The token that a text begins with: the tokenizer's or, where it names none, the model's own."""
        named: object = self.tokenizer.bos_token_id
        if named is None:
            named = getattr(self.model.config.get_text_config(), "bos_token_id", None)
        return named if isinstance(named, int) else None


def load_model(
    spec: str, dtype: str = "auto", device: str = "cpu", revision: str | None = None
) -> LoadedModel:
    """Load `spec`, a directory or a hub id. `auto` is float32 on a CPU and the checkpoint's dtype elsewhere.

    No code of the checkpoint is run, and only safetensors are read. Raises ModelLoadError.
    """
    check_dtype(dtype)
    check_device(device)
    wanted = DTYPES.get(dtype, torch.float32 if device == "cpu" else "auto")
    options = {"revision": revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(spec, **options)
        _check_kind(spec, config)
        tokenizer = AutoTokenizer.from_pretrained(spec, **options)
        kind: Any = AutoModelForImageTextToText if sees(config) else AutoModelForCausalLM
        loaded: Any = kind.from_pretrained(
            spec, config=config, dtype=wanted, use_safetensors=True, output_loading_info=True, **options
        )
    except ModelLoadError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelLoadError(f"{spec}: {error}") from error
    except Exception as error:  # Whatever else Transformers makes of a configuration that it does not expect.
        raise ModelLoadError(
            f"{spec}: Transformers cannot read it ({type(error).__name__}: {error})"
        ) from error
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):  # Transformers would make them up
        raise ModelLoadError(f"{spec}: {len(missing)} weights are missing, the first is {missing[0]}")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelLoadError(f"{spec}: its tokenizer has no fast version (tokenizer.json)")
    # The environment of some images has float32 matrices rounded to TF32, for which no margin allows.
    torch.set_float32_matmul_precision("highest")
    nn.Module.to(model, device)
    model.train(False).requires_grad_(False)
    text = model.config.get_text_config()
    return LoadedModel(
        name=Path(spec).resolve().name if Path(spec).exists() else spec,
        model=model,
        tokenizer=tokenizer,
        digest=_digest(model),
        eos_token_ids=_eos(model, tokenizer),
        max_context=int(getattr(text, "max_position_embeddings", 2048)),
        eyes=_eyes(spec, model, revision) if sees(config) else None,
    )


def _eyes(spec: str, model: PreTrainedModel, revision: str | None) -> TowerEyes:
    """What prepares pictures for a model that sees them. Raises ModelLoadError."""
    try:
        return TowerEyes.of(model, spec, revision)
    except UnsupportedModelError as error:
        raise ModelLoadError(f"{spec}: {error}") from error
    except Exception as error:  # Whatever Transformers makes of a processor that it does not expect.
        raise ModelLoadError(
            f"{spec}: what prepares its pictures cannot be read ({type(error).__name__}: {error})"
        ) from error


def _check_kind(spec: str, config: PretrainedConfig) -> None:
    """Raise ModelLoadError for a model that does not write on from a text, before its weights are read."""
    if config.is_encoder_decoder:
        raise ModelLoadError(
            f"{spec}: {config.model_type} is an encoder-decoder model, and this server serves models that "
            "write on from a text alone"
        )
    if sees(config) or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ModelLoadError(f"{spec}: {config.model_type} is not served: {why_blind(config)}")
    raise ModelLoadError(
        f"{spec}: Transformers has no {config.model_type} model that writes on from a text alone"
    )


def check_dtype(dtype: str) -> None:
    """Raise MachineError for a dtype that the engine does not run in."""
    if dtype not in (*DTYPES, "auto"):
        raise MachineError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}")


def check_device(device: str) -> None:
    """Raise MachineError for a device that is none, or that this machine or this torch does not have."""
    if device == "cpu":
        return
    cuda = _CUDA.fullmatch(device)
    if cuda is None:
        raise MachineError(f"device {device!r} is none; devices are cpu, cuda, cuda:1 ...")
    if not torch.cuda.is_available():
        built = "no driver or no GPU is found" if torch.version.cuda is not None else "this torch has no CUDA"
        raise MachineError(f"device {device!r} cannot be used: {built}; cpu can")
    if int(cuda["number"] or 0) >= torch.cuda.device_count():
        raise MachineError(
            f"device {device!r} is not there: there are cuda:0 to cuda:{torch.cuda.device_count() - 1}"
        )


def _eos(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The tokens that end a text: those of the generation config and the tokenizer's own."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    named = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({token for token in (*named, tokenizer.eos_token_id) if token is not None}))


def _digest(model: PreTrainedModel) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(name.encode() + b"\0")
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
