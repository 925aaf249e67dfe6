"""Write the Python stubs of protos/ into clients/python/, or with --check tell whether they are current.

Messages (`*_pb2.py`, `*_pb2.pyi`) and services (`*_pb2_grpc.py`) come from grpcio-tools. It writes no types
for services, so this script writes `*_pb2_grpc.pyi` itself, from the same descriptors.
"""

import argparse
import filecmp
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto
from grpc_tools import protoc  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"
PACKAGE = Path("saegis/v1")
TARGET = ROOT / "clients/python"
PACKAGE_INIT = '"""Generated messages and services of the package saegis.v1: see protos/saegis/v1."""\n'

SERVICE_TYPES_HEADER = """\
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
import grpc.aio
{imports}
"""


def generate(target: Path) -> None:
    """Write every stub below `target`; raises RuntimeError with protoc's exit status if it fails."""
    names = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("saegis/v1/*.proto"))
    descriptors = target / "descriptors.binpb"
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTOS}",
            f"--proto_path={files('grpc_tools').joinpath('_proto')}",
            f"--python_out={target}",
            f"--pyi_out={target}",
            f"--grpc_python_out={target}",
            f"--descriptor_set_out={descriptors}",
            *names,
        ]
    )
    if status != 0:
        raise RuntimeError(f"protoc failed with status {status}")
    described = FileDescriptorSet.FromString(descriptors.read_bytes())
    descriptors.unlink()
    for file in described.file:
        stem = target / file.name.removesuffix(".proto")
        if file.service:
            stem.with_name(f"{stem.name}_pb2_grpc.pyi").write_text(service_types(file))
        else:
            # protoc writes an empty module where a file has no service.
            stem.with_name(f"{stem.name}_pb2_grpc.py").unlink()
    for types in (target / PACKAGE).glob("*_pb2.pyi"):
        # protoc writes a bare Mapping, which strict type checkers refuse.
        types.write_text(types.read_text().replace(", _Mapping]", ", _Mapping[str, object]]"))
    (target / PACKAGE / "__init__.py").write_text(PACKAGE_INIT)


def service_types(file: FileDescriptorProto) -> str:
    """The text of `*_pb2_grpc.pyi` for one file: stubs for both kinds of channel, servicers, registration."""
    messages = {method.input_type for service in file.service for method in service.method}
    messages |= {method.output_type for service in file.service for method in service.method}
    modules = {f".{file.package}.": Path(file.name).stem}
    unknown = [name for name in messages if name.rpartition(".")[0] + "." not in modules]
    if unknown:
        raise RuntimeError(f"{file.name}: requests and responses must lie in its own package, not {unknown}")
    module = f"{Path(file.name).stem}_pb2"
    text = SERVICE_TYPES_HEADER.format(imports=f"from saegis.v1 import {module}")
    for service in file.service:
        text += _stub(f"{service.name}Stub", "grpc", list(service.method), module)
        text += f"\n# Exists for type checkers only: cast {service.name}Stub(channel) to it.\n"
        text += _stub(f"{service.name}AsyncStub", "grpc.aio", list(service.method), module)
        text += f"\nclass {service.name}Servicer:\n"
        for method in service.method:
            request, response = _types(method, module)
            answer = (
                f"Iterator[{response}] | AsyncIterator[{response}]"
                if method.server_streaming
                else f"{response} | Awaitable[{response}]"
            )
            text += f"    def {method.name}(self, request: {request}, context: Any) -> {answer}: ...\n"
        text += (
            f"\ndef add_{service.name}Servicer_to_server(\n"
            f"    servicer: {service.name}Servicer, server: grpc.Server | grpc.aio.Server\n) -> None: ...\n"
        )
    return text


def _stub(name: str, runtime: str, methods: list[MethodDescriptorProto], module: str) -> str:
    text = f"\nclass {name}:\n    def __init__(self, channel: {runtime}.Channel) -> None: ...\n"
    for method in methods:
        kind = "UnaryStream" if method.server_streaming else "UnaryUnary"
        request, response = _types(method, module)
        text += f"    {method.name}: {runtime}.{kind}MultiCallable[{request}, {response}]\n"
    return text


def _types(method: MethodDescriptorProto, module: str) -> tuple[str, str]:
    if method.client_streaming:
        raise RuntimeError(f"{method.name}: streams of requests are not foreseen")
    return (
        f"{module}.{method.input_type.rpartition('.')[2]}",
        f"{module}.{method.output_type.rpartition('.')[2]}",
    )


def differences(fresh: Path, committed: Path) -> list[str]:
    """Names of stubs that are missing, superfluous or different in `committed`, sorted."""
    new = {path.name for path in fresh.iterdir() if path.is_file()}
    old = {path.name for path in committed.iterdir() if path.is_file()} if committed.is_dir() else set()
    same, _, _ = filecmp.cmpfiles(fresh, committed, new & old, shallow=False)
    return sorted((new | old) - set(same))


def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if a stub is not current"
    )
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        stale = differences(Path(scratch) / PACKAGE, TARGET / PACKAGE)
        if check:
            print("\n".join(f"not current: {PACKAGE / name}" for name in stale), end="\n" if stale else "")
            return 1 if stale else 0
        (TARGET / PACKAGE).mkdir(parents=True, exist_ok=True)
        for name in stale:
            fresh, old = Path(scratch) / PACKAGE / name, TARGET / PACKAGE / name
            if fresh.exists():
                old.write_bytes(fresh.read_bytes())
            else:
                old.unlink()
        print(f"{len(stale)} stubs changed in {(TARGET / PACKAGE).relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
