"""Which device a command runs on."""

import torch

from rwkvseg.errors import BackendError, UsageError


def choose_device(name: str) -> torch.device:
    """Device for "auto" (CUDA where it works, else the CPU), "cpu" or "cuda".

    Raises:
        BackendError: CUDA was asked for and is not there.
        UsageError: another name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            "no CUDA device was found, or this torch was built without CUDA. "
            "Use --device cpu, or install a CUDA build."
        )
    if name not in ("cpu", "cuda"):
        raise UsageError(f"unknown device '{name}'. Choose auto, cpu or cuda.")
    return torch.device(name)
