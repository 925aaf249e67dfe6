"""Proves on a machine with a CUDA device what tests elsewhere cannot: run from the root of the repository.

    python scripts/gpu_proof.py OUT [--device cpu] [--seconds 300]

Runs the tests that need a device, serves the reference model there and asks it over gRPC, and measures tokens
a second. Each part has a time of its own, and the next one runs whatever became of it; what they say is in
OUT, with a summary in OUT/proof.json. Ends with 1 if a part failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saegis import Client, Edit, Generation
    from saegis_lab.bench.subjects import Subject
    from saegis_server.engine.torch.step import Step

ROOT = Path(__file__).resolve().parents[1]
#: A part of this script itself, run in a process of its own so that it can be ended.
PARTS = ("machine", "compile", "served", "throughput")

#: What is measured: first in the weights' own dtype, which is the default on a device.
DTYPES, STREAMS = ("bfloat16", "float32"), (1, 8, 64)


class Run:
    """A part that runs in a process of its own, and what it says in a file."""

    def __init__(self, name: str, command: Sequence[str], out: Path, seconds: float) -> None:
        self.name, self.seconds, self._began = name, seconds, time.monotonic()
        self._log = (out / f"{name}.log").open("w", encoding="utf-8")
        self._process = subprocess.Popen(  # noqa: S603 - the command is made here
            [sys.executable, *command],
            cwd=ROOT,
            env=_environment(),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def end(self) -> dict[str, object]:
        """Wait for it as long as it may take; how it ended."""
        left = self.seconds - (time.monotonic() - self._began)
        try:
            code: int | str = self._process.wait(max(left, 0.1))
        except subprocess.TimeoutExpired:
            self._interrupt()
            code = f"ended after {self.seconds:.0f} s"
        took = time.monotonic() - self._began
        self._log.close()
        lines = Path(self._log.name).read_text(encoding="utf-8", errors="replace").splitlines()
        print(f"{self.name}: {code} after {took:.0f} s: {lines[-1] if lines else ''}", flush=True)
        return {"exit": code, "seconds": round(took, 1), "last": lines[-3:]}

    def _interrupt(self) -> None:
        """End it as Ctrl-C does, so that it ends what it started itself."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _environment() -> dict[str, str]:
    """This one's, with the packages of the checkout and nothing from a hub."""
    own = [str(ROOT / folder) for folder in ("clients/python", "server", "lab", ".")]
    path = os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
    cache = os.environ.get("SAEGIS_COMPILE_CACHE", "/tmp/saegis-compiled")  # noqa: S108 - of a bare machine
    return {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
        "TORCHINDUCTOR_COMPILE_THREADS": "8",
        "SAEGIS_COMPILE_CACHE": cache,
    }


def tests(workers: int, *what: str) -> list[str]:
    """The command of the tests that need a device, of these files."""
    # Another image's pytest plugins and torch warn of what is none of ours.
    quiet = ("-W", "default", "-p", "no:cacheprovider", "--durations=15", "-rfEs", "--tb=short")
    spread = ("-n", str(workers), "--dist", "loadfile") if workers else ()
    return ["-m", "pytest", "-m", "gpu", "--all", *quiet, *spread, *what]


def main() -> int:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long all of it may take")
    parser.add_argument("--part", choices=PARTS, help="run this part alone, here")
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if given.part is not None:
        parts = {"machine": machine, "compile": compile_ahead, "served": served, "throughput": throughput}
        parts[given.part](given.device, out)
        return 0
    own, began, seconds = str(Path(__file__).resolve()), time.monotonic(), float(given.seconds)
    ended: dict[str, dict[str, object]] = {}

    def left(most: float) -> float:
        return max(5.0, min(most, seconds - (time.monotonic() - began)))

    def part(name: str, most: float) -> Run:
        return Run(name, [own, str(out), "--device", given.device, "--part", name], out, left(most))

    reference = ("float32-eager", "float32-compiled", "bfloat16-compiled")
    # Side by side: all but what is measured.
    together = [
        part("machine", 40.0),
        Run("conformance", tests(8, "tests/engine/conformance"), out, left(150.0)),
        Run("compiled", tests(0, "tests/engine/test_compiled.py"), out, left(170.0)),
        *(
            Run(name, tests(0, "tests/engine/test_cuda.py", "-k", name), out, left(170.0))
            for name in reference
        ),
        part("compile", 170.0),
    ]
    for run in together:
        ended[run.name] = run.end()
    for name in ("served", "throughput"):
        ended[name] = part(name, 70.0).end()
    for name in PARTS:
        file = out / f"{name}.json"
        if file.exists():
            ended.setdefault(name, {})["found"] = json.loads(file.read_text(encoding="utf-8"))
    ended["all"] = {"seconds": round(time.monotonic() - began, 1)}
    (out / "proof.json").write_text(json.dumps(ended, indent=1), encoding="utf-8")
    print(json.dumps(ended, indent=1))
    return int(any(each.get("exit", 0) != 0 for each in ended.values()))


def _write(out: Path, name: str, found: object) -> None:
    (out / f"{name}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def machine(device: str, out: Path) -> None:
    """What runs here."""
    from importlib.metadata import version

    import torch

    names = ("torch", "transformers", "grpcio", "protobuf", "pydantic", "numpy")
    found: dict[str, object] = {name: version(name) for name in names}
    if device != "cpu":
        own = torch.cuda.get_device_properties(0)
        tf32 = torch.backends.cuda.matmul.allow_tf32
        found |= {"device": own.name, "bytes": own.total_memory, "cuda": torch.version.cuda, "tf32": tf32}
    _write(out, "machine", found)
    print(found)


def compile_ahead(device: str, out: Path) -> None:
    """Compile what is measured later, beside the tests."""
    for dtype in DTYPES:
        _steps(device, dtype, compiled=True)


def _steps(device: str, dtype: str, compiled: bool) -> tuple[Subject, Step]:
    """The reference model and a warm step on it."""
    from saegis_lab.bench import loads
    from saegis_lab.bench.subjects import reference_subject
    from saegis_server.engine.torch.compile_cache import settle
    from saegis_server.reference import MODEL

    settle()
    subject = reference_subject(str(MODEL), device, dtype)
    return subject, loads.warm_step(subject, (subject.site,), STREAMS[-1], print, compiled=compiled)


def served(device: str, out: Path) -> None:
    """`saegis serve` on the device, in the dtype that is the default there and in float32, asked over gRPC
    without a policy and under the one that ships."""
    from saegis import Client
    from saegis_lab.cli.demo_scenes import open_policy
    from saegis_server.rpc.server.process import ServerProcess

    # Where it must be compiled, it does not serve otherwise.
    compiled = "never" if device == "cpu" else "always"
    found: dict[str, object] = {}
    for dtype in ("auto", "float32"):
        folder = out / "policies" / dtype / "open"
        folder.mkdir(parents=True)
        options = ["--device", device, "--dtype", dtype, "--max-num-seqs", "64", "--usage-every", "1"]
        options += ["--compile", compiled]
        options += ["--policy-state", str(folder.with_name("state")), "--policy", str(open_policy(folder))]
        with ServerProcess(options, lambda what, done, total: print(what, done, total)) as server:
            with Client(server.target, timeout=60.0) as client:
                found[dtype] = _asked(client)
            found[f"{dtype}, seconds to start and stop"] = server.start_seconds, server.stop()
        _write(out, "served", found)
    shutil.rmtree(out / "policies")
    print(json.dumps(found, indent=1, ensure_ascii=False))


def _asked(client: Client) -> dict[str, object]:
    """What a server answers; ends with an AssertionError where it is not what it promises."""
    from saegis import ban, clamp
    from saegis_lab.cli.demo_scenes import put_shipped
    from saegis_lab.evaluation.experiment import BanFile, load_prompts
    from saegis_server.reference import WEIGHTS

    bridge = [clamp(139, 0.6, unit="max_activation")]
    banned = [ban(each, 0.5) for each in BanFile.load(WEIGHTS / "eval/ban.json").features]
    rows: dict[str, Sequence[Edit]] = {"plain": [], "clamped": bridge, "banned": banned}

    def ask(edits: Sequence[Edit], temperature: float = 0.0) -> Generation:
        question: list[Mapping[str, str]] = [{"role": "user", "content": "Tell me about the train."}]
        return client.generate(
            messages=question, steering=edits, max_tokens=40, temperature=temperature, seed=5
        )

    answers = {name: ask(own) for name, own in rows.items()}
    for name, own in rows.items():
        _require(ask(own).text == answers[name].text, f"{name}: asked again, it answers otherwise")
    _require(not answers["plain"].receipt.steered, "what is not steered is told as steered")
    _require(answers["clamped"].text != answers["plain"].text, "a clamp changes nothing")
    drawn = [ask(bridge, 0.9).text for _ in range(2)]
    _require(drawn[0] == drawn[1], "a seed gives another text the second time")
    revision = put_shipped(client)
    harmful = [each for each in load_prompts(WEIGHTS / "eval/prompts.jsonl") if each.harmful][:16]
    ruled = [client.generate(messages=each.messages, max_tokens=40, temperature=0.0) for each in harmful]
    _require(all(answer.receipt.ruled for answer in ruled), "an answer to a harmful prompt is not ruled")
    return {
        "server": str(client.server_info()),
        "answers": {name: answer.text for name, answer in answers.items()},
        "under": revision,
        "ruled": [[str(answer.finish_reason), answer.text] for answer in ruled],
    }


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)


def throughput(device: str, out: Path) -> None:
    """Tokens a second of the reference model, in float32 and its own dtype, compiled and eagerly, steered and
    not, of 1, 8 and 64 streams, and those of Transformers' static batch."""
    from saegis_lab.bench import loads
    from saegis_lab.bench.subjects import random_sae

    found: dict[str, float] = {}
    for dtype in DTYPES:
        for compiled in (True, False) if device != "cpu" else (False,):
            subject, step = _steps(device, dtype, compiled)
            sae = random_sae(subject.width, 4096)
            for count in STREAMS:
                asked, steered = loads.prompts(subject, count), loads.programs(subject, sae, count, count)
                name = f"{dtype}, {'compiled' if compiled else 'eager'}, {count} streams"
                for kind, programs in (("unsteered", None), ("steered", steered)):
                    # The first time is not measured.
                    loads.tokens_per_second(step, asked, programs)
                    found[f"{name}, {kind}"] = round(loads.tokens_per_second(step, asked, programs), 1)
                _write(out, "throughput", found)
        plain = subject.make()
        for count in STREAMS:
            asked = loads.prompts(subject, count)
            loads.generate(plain, asked)
            found[f"{dtype}, Transformers, {count} streams"] = round(loads.generate(plain, asked), 1)
        _write(out, "throughput", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    sys.exit(main())
