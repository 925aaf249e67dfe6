"""A CUDA device in tests: what needs one is left out where there is none."""

import pytest
import torch

DEVICE = "cuda"
#: The marks of what runs on a CUDA device.
needs_cuda = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"),
)
