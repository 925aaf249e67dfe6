"""Threads: with how many of them a thread computes."""

import torch


def compute_with(threads: int) -> None:
    """Let this thread compute with so many threads, where it would not by itself.

    Asking torch for what is there already is not free: on two cores it cost the embedded engine a twentieth.
    """
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
