"""Triton's interpreter in place of its compiler: so vLLM's second runner, which needs Triton, runs on a CPU.

Slow, and the true seam: the runner's own code, whose kernels are interpreted.
"""

import os
from typing import Any


def interpret() -> None:
    """Let Triton believe that there is a device, whose kernels it interprets. To be called before vLLM is
    imported. Raises RuntimeError where Triton, which may have been imported, was not told to interpret."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("vLLM's second runner is tried with TRITON_INTERPRET=1")
    from triton.backends import Backend, backends
    from triton.backends.compiler import BaseBackend, GPUTarget
    from triton.backends.driver import DriverBase

    class Driver(DriverBase):  # type: ignore[misc]
        """A device that is there."""

        def __init__(self) -> None:
            super().__init__()
            self.get_current_stream = lambda index: 0
            self.get_current_device = lambda: 0

        @classmethod
        def is_active(cls) -> bool:
            return True

        def get_current_target(self) -> Any:
            return GPUTarget("cpu", 0, 1)

        def get_active_torch_device(self) -> Any:
            import torch

            return torch.device("cpu")

        def map_python_to_cpp_type(self, ty: str) -> str:
            return ty

        def get_benchmarker(self) -> Any:
            return lambda call, *args, **kwargs: [0.0]

    class Compiler(BaseBackend):  # type: ignore[misc]
        """That takes it and compiles nothing."""

        @staticmethod
        def supports_target(target: Any) -> bool:
            return bool(target.backend == "cpu")

        def hash(self) -> str:
            return "interpreted"

        def parse_options(self, options: dict[str, Any]) -> object:
            return options

        def add_stages(self, stages: Any, options: Any, language: Any) -> None:
            return None

        def load_dialects(self, context: Any) -> None:
            return None

        def get_module_map(self) -> dict[str, Any]:
            return {}

    backends["cpu"] = Backend(compiler=Compiler, driver=Driver)
