"""What the tests of bi_wkv from shared memory have in common."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from wkv_cases import Inputs, Operator, errors, run

from rwkvseg.ops import bi_wkv, naive_bi_wkv

NAMES = ("_layouts", "_copies", "", "_gradients", "_backward")
MODULES = [f"rwkvseg.ops.wkv.triton_shared{name}" for name in NAMES]
LONG_MODULES = [*MODULES, *(f"rwkvseg.ops.wkv.triton_shared_long{name}" for name in ("", "_backward"))]
triton_bi_wkv: Operator = partial(bi_wkv, backend="triton")


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
            first = 0
            if constants.get("HALVES") == "halves":  # those before are of the launch before
                first = arguments[place + 2]
            flags[first:] = 7  # an int32 knows no NaN
            self.kernel[grid](*arguments, **constants)
            self.flags.append(flags[first : first + grid[0]].clone())

        return launch


def check(x: Inputs, limit: float) -> None:
    """Hold the kernels to the definition in float64."""
    found = errors(run(triton_bi_wkv, x), run(naive_bi_wkv, x.to(torch.float64)), x)
    assert max(found.values()) < limit, found


def on_gpu(x: Inputs, dtype: torch.dtype = torch.bfloat16, device: str = "cuda") -> Inputs:
    """Return inputs there, k, v and g rounded."""
    return Inputs(*(part.to(device) for part in x)).to(dtype, both=False)
