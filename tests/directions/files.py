"""Files of directions, whole and damaged, as bytes."""

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

WIDTH = 32
#: What begins as a zip archive and is none.
EMPTY_ZIP = b"PK\x03\x04" + bytes(40)


class Bomb:
    """What would raise while it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('a pickle was executed')",)


def vector(seed: int = 0, width: int = WIDTH) -> Tensor:
    """Random numbers, float32 [width], not of length 1."""
    return 3.0 * torch.randn(width, generator=torch.Generator().manual_seed(seed))


def safetensors(tensors: Mapping[str, Tensor] | Tensor, **metadata: str) -> bytes:
    named = {"refusal": tensors} if isinstance(tensors, Tensor) else dict(tensors)
    return save(named, metadata or None)


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def zipped(content: bytes, method: int = zipfile.ZIP_STORED, name: str = "refusal.npy") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def npy(header: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An array in numpy's format with whatever its header claims."""
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header.encode() + body


def header(shape: str, kind: str = "<f4") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n"


def damaged() -> dict[str, tuple[bytes, str]]:
    """Files that are no direction of WIDTH numbers, by what is wrong, each with a part of the message."""
    good = vector()
    plain, array = safetensors(good), good.numpy()
    body = array.tobytes()
    infinite, huge = good.clone(), good.double() * 1e300
    infinite[3] = float("nan")
    return {
        "cut short": (plain[:-5], "is no whole safetensors file"),
        "with more behind it": (plain + b"x", "is no whole safetensors file"),
        "empty header": (b"\0" * 8, "is no whole safetensors file"),
        "text": (b"not a file of directions at all", "is no whole safetensors file"),
        "a pickle": (torch_pickle(), "holds"),
        "two tensors": (safetensors({"a": good, "b": 2 * good}), "holds 2 arrays"),
        "no tensor": (safetensors({}), "holds 0 arrays"),
        "two axes": (safetensors(good[None]), "has the shape [1, 32]"),
        "integers": (safetensors(good.to(torch.int32)), "is of type int32"),
        "not finite": (safetensors(infinite), "not finite in float32"),
        "too large for float32": (safetensors(huge), "not finite in float32"),
        "zero": (safetensors(torch.zeros(WIDTH)), "is zero everywhere"),
        "too many bytes": (safetensors({"a": torch.zeros(30_000)}), "has at most"),
        "npz cut short": (npz(a=array)[:-30], "npz"),
        "npz with another checksum": (npz(a=array).replace(body[:8], b"\0" * 8), "npz"),
        "npz of objects": (npz(a=np.array([Bomb()], dtype=object)), "is of type"),
        "npz of two": (npz(a=array, b=array), "holds 2 arrays"),
        "npz of none": (EMPTY_ZIP, "npz"),
        "npz of integers": (npz(a=array.astype(np.int64)), "is of type int64"),
        "npz of complex numbers": (npz(a=array.astype(np.complex64)), "is of type complex64"),
        "npz of two axes": (npz(a=array[None]), "says that its shape is [1, 32]"),
        "npz of a number": (npz(a=np.float32(1.0)), "says that its shape is []"),
        "npz with nan": (npz(a=infinite.numpy()), "not finite in float32"),
        "npz of zeros": (npz(a=np.zeros(WIDTH)), "is zero everywhere"),
        "npz that would grow": (npz(compressed=True, a=np.zeros(10**6)), "of at most"),
        "npz packed otherwise": (
            zipped(npy(header("(32,)"), body), zipfile.ZIP_LZMA),
            "packs nothing",
        ),
        "npz that claims much": (
            zipped(npy(header("(250000000000,)"), body)),
            "says that its shape is",
        ),
        "npz whose header is a program": (zipped(npy("__import__('os').abort()\n")), "cannot be read"),
        "npz of no array": (zipped(b"hello"), "cannot be read"),
        "npz of another version": (zipped(npy(header("(32,)"), body, b"\x03\x00")), "version"),
    }


def misfit() -> dict[str, tuple[bytes, str]]:
    """Files of directions of another width, as `damaged` has them."""
    return {
        "another width": (safetensors(vector(width=31)), "must have 32 numbers"),
        "npz of another width": (npz(a=vector(width=33).numpy()), "must have 32 numbers"),
        "a width that its site has not": (
            safetensors(vector(width=16), site="layers.0.resid_post"),
            "must have 32 numbers, as the model's activations at layers.0.resid_post, not 16",
        ),
    }


def torch_pickle() -> bytes:
    """What torch.save writes of a vector: a zip archive with a pickle."""
    file = io.BytesIO()
    torch.save({"refusal": vector()}, file)
    return file.getvalue()
