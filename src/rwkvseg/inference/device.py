"""Which device a command runs on."""

import torch

from rwkvseg.errors import BackendError, UsageError


def choose_device(name: str | torch.device) -> torch.device:
    """Device for "auto" (CUDA where it works, else the CPU), "cpu", "cuda", or "cuda:1" of several.

    Raises:
        BackendError: CUDA was asked for and is not there, or not so many devices.
        UsageError: another name.
    """
    name = str(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            "no CUDA device was found, or this torch was built without CUDA. "
            "Use --device cpu, or install a CUDA build."
        )
    if name not in ("cpu", "cuda") and not (kind == "cuda" and number.isdecimal()):
        raise UsageError(f"unknown device '{name}'. Choose auto, cpu, cuda or cuda:NUMBER.")
    if number and int(number) >= torch.cuda.device_count():
        raise BackendError(f"there is no {name}, only {torch.cuda.device_count()} of them, from cuda:0 on.")
    return torch.device(name)
