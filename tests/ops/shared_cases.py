"""What the tests of bi_wkv from shared memory have in common."""

from functools import partial
from typing import Any

import pytest
import torch
from gluon_emulator import Kernel
from torch import Tensor
from wkv_cases import Inputs, Operator, errors, run

from rwkvseg.ops import bi_wkv, naive_bi_wkv
from rwkvseg.ops.wkv import tiled

NAMES = ("_layouts", "_copies", "", "_gradients", "_backward")
MODULES = [f"rwkvseg.ops.wkv.triton_shared{name}" for name in NAMES]
LONG_MODULES = [*MODULES, *(f"rwkvseg.ops.wkv.triton_shared_long{name}" for name in ("", "_backward"))]
triton_bi_wkv: Operator = partial(bi_wkv, backend="triton")
ON_GPU = torch.cuda.is_available()
HOPPER = ON_GPU and torch.cuda.get_device_capability() == tiled.SHARED_CAPABILITY


class Watched:
    """A kernel that is launched as another one, and the flags it left."""

    def __init__(self, kernel: Any, flags: list[Tensor]) -> None:
        self.kernel, self.flags = kernel, flags

    def __getitem__(self, grid: tuple[int]) -> Any:
        def launch(*arguments: Any, **constants: Any) -> None:
            place = next(
                i for i, x in enumerate(arguments) if isinstance(x, Tensor) and x.dtype == torch.int32
            )
            flags = arguments[place]
            flags[:] = 7  # an int32 knows no NaN
            self.kernel[grid](*arguments, **constants)
            self.flags.append(flags[: grid[0]].clone())

        return launch


def emulate_tiles(
    monkeypatch: pytest.MonkeyPatch, kernels: dict[str, Kernel], tiles: dict[int, tiled.Tiling]
) -> list[Tensor]:
    """Send whole tiles of any dtype, by their tokens, to emulated kernels; gather the flags they leave."""
    if ON_GPU:
        pytest.skip("emulated where Triton's kernels are interpreted")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    found: list[Tensor] = []
    monkeypatch.setattr(
        tiled, "shared_kernel", lambda name: Watched(kernels[f"bi_wkv_{name}_shared_kernel"], found)
    )
    monkeypatch.setattr(tiled, "takes_shared_memory", lambda *tensors: True)
    monkeypatch.setattr(tiled, "SHARED_BYTES", 2**20)  # of the CPU's tiles in float32
    monkeypatch.setattr(tiled, "tiling", lambda num_tokens, itemsize, *, backward: tiles[num_tokens])
    return found


def check(x: Inputs, limit: float) -> None:
    """Hold the kernels to the definition in float64."""
    found = errors(run(triton_bi_wkv, x), run(naive_bi_wkv, x.to(torch.float64)), x)
    assert max(found.values()) < limit, found


def on_gpu(x: Inputs, dtype: torch.dtype = torch.bfloat16, device: str = "cuda") -> Inputs:
    """Return inputs there, k, v and g rounded."""
    return Inputs(*(part.to(device) for part in x)).to(dtype, both=False)
