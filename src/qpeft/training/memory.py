"""Peak memory of this process: the GPU's where one is used, else the operating system's figure."""

from __future__ import annotations

import sys

import torch


def peak_memory_bytes(device: str) -> int:
    """Largest amount of memory used so far, in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
