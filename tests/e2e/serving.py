"""`saegis serve` in a process of its own, and the files of a tiny model and SAE for it to serve."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.formats.saelens import save_sae
from tests.rpc import tiny

SITE = "layers.1.resid_post"
LABELS = (
    {
        "feature": 3,
        "label": "the red bridge",
        "max_activation": 4.0,
        "languages": ["en"],
        "density": 0.1,
        "precision_by_language": {"de": 0.7},
    },
    {"feature": 5, "label": "a river", "max_activation": 2.0},
    {"feature": 7, "label": "poison", "max_activation": 3.0, "harmful": True},
)
STOP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class TinyFiles:
    """Directories of a random model and of an SAE that reconstructs its activations exactly."""

    model: Path
    sae: Path

    @property
    def options(self) -> tuple[str, ...]:
        """Options of `saegis serve` that serve them."""
        return ("--model", str(self.model), "--sae", str(self.sae))


def write_tiny_files(folder: Path) -> TinyFiles:
    """Write a random Llama with its tokenizer, and an SAE of pairs relu(q·x), relu(−q·x), q orthonormal."""
    files = TinyFiles(folder / "tiny-model", folder / "tiny-sae")
    tiny.model().save_pretrained(files.model)
    tiny.tokenizer().save_pretrained(files.model)
    generator = torch.Generator().manual_seed(5)
    rotation = torch.linalg.qr(torch.randn(tiny.WIDTH, tiny.WIDTH, generator=generator))[0]
    rows = torch.cat((rotation, -rotation))
    sae = SparseAutoencoder(
        Architecture.STANDARD,
        W_enc=rows.T.contiguous(),
        W_dec=rows,
        b_dec=torch.zeros(tiny.WIDTH),
        b_enc=torch.zeros(len(rows)),
        hook_name=SITE,
    )
    save_sae(sae, files.sae)
    lines = "".join(json.dumps(label) + "\n" for label in LABELS)
    (files.sae / "features.jsonl").write_text(lines, encoding="utf-8")
    return files


@dataclass
class Serving:
    """A running `saegis serve --json`, and what it has told so far."""

    process: subprocess.Popen[str]
    stderr_path: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ready(self) -> dict[str, Any]:
        """The event that says where it serves."""
        return next(event for event in self.events if event["event"] == "ready")

    @property
    def target(self) -> str:
        """The gRPC target."""
        return str(self.ready["target"])

    @property
    def stages(self) -> list[str]:
        """The stages of the start, in order."""
        return [event["stage"] for event in self.events if event["event"] == "stage"]

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for the end; the exit status."""
        return self.process.wait(STOP_SECONDS)


def command(*options: str) -> list[str]:
    """The command that serves on free ports, eagerly unless the options say otherwise."""
    base = [sys.executable, "-m", "saegis_server.cli", "serve", "--port", "0", "--metrics-port", "0"]
    compile = () if "--compile" in options else ("--compile", "never")
    return [*base, *compile, *options]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment for a small server: one thread, no hub."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **changes}


@contextmanager
def serving(stderr_path: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Serving]:
    """A server that serves; it is killed in the end if it has not ended by itself."""
    with (
        stderr_path.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            command("--json", *options),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=env or environment(),
        ) as process,
    ):
        try:
            server = Serving(process, stderr_path)
            _read_until_ready(server)
            yield server
        finally:
            if process.poll() is None:
                process.kill()


def _read_until_ready(server: Serving) -> None:
    """Read events in a thread while it runs; return once it serves. Raises RuntimeError if it ends."""
    ready = threading.Event()

    def read() -> None:
        assert server.process.stdout is not None
        for line in server.process.stdout:
            server.events.append(json.loads(line))
            if server.events[-1]["event"] == "ready":
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    ready.wait(240.0)
    if not any(event["event"] == "ready" for event in server.events):
        raise RuntimeError(f"it did not serve: {server.stderr_path.read_text(encoding='utf-8')}")
