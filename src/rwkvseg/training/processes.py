"""Several processes of one run, one a device: which of them speaks and writes, and their parting.

Lightning starts the others by the command of the first, with their rank in the environment: they run through
the same program.
"""

import os

import torch

from rwkvseg.errors import BackendError, RecipeError
from rwkvseg.wording import counted

RANK = int(os.environ.get("LOCAL_RANK", "0"))
FIRST_PROCESS = RANK == 0


def require_devices(device: torch.device, devices: int) -> None:
    """Raise BackendError where a run wants more GPUs than there are."""
    there = torch.cuda.device_count() if device.type == "cuda" else devices
    if devices > there:
        raise BackendError(
            f"training.devices is {devices}, but {counted(there, 'GPU')} can be used. "
            f"Set it to {there} or less (--set training.devices={there})."
        )


def require_share(devices: int, number: int, what: str) -> None:
    """Raise RecipeError where some devices have no share: the others would wait for them forever."""
    if number < devices:
        raise RecipeError(
            f"training.devices is {devices}, with {number} {what}: less than one for each. "
            f"Set it to {max(1, number)}."
        )


def part() -> None:
    """Wait for the other processes and leave them, if there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
