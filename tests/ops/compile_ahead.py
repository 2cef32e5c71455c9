"""Compile kernels ahead for an H200, without one; print what was compiled, launched, found in the cache."""

import contextlib
import json
import tempfile
from collections import Counter

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel

from rwkvseg.ops.ahead import kernels_compiled_ahead
from rwkvseg.ops.fused import triton_batch_norm, triton_depthwise2d


class StandIn:
    """What Triton asks of a GPU's driver before it launches."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: object = None) -> int:
        return 0


seen: Counter[str] = Counter()


def count(*, cache_hit: bool, **_: object) -> None:
    seen["found" if cache_hit else "compiled"] += 1


def launch(*_: object) -> None:
    seen["launched"] += 1


def work() -> None:
    """Three kernels, one of them in Gluon, two of them twice."""
    x = torch.ones(2, 64, 8, 8).bfloat16().contiguous(memory_format=torch.channels_last)
    parameters = [torch.ones(64)] * 4
    for activation in ("relu", "identity", "relu"):
        triton_batch_norm.forward(x, parameters, None, 1e-5, activation)
    for _ in range(2):
        triton_depthwise2d.convolve(x, torch.ones(64, 1, 3, 3), flipped=False)


def told() -> dict[str, int]:
    result = dict(seen)
    seen.clear()
    return result


def main() -> None:
    triton.runtime.driver.set_active(StandIn())
    triton.knobs.compilation.listener = count
    torch.cuda.device_of = contextlib.nullcontext  # type: ignore[misc]
    CompiledKernel._init_handles = CompiledKernel.launch_metadata = lambda *_: None
    CompiledKernel.run = property(lambda _: launch)
    with tempfile.TemporaryDirectory() as folder:
        triton.knobs.cache.dir = folder
        with kernels_compiled_ahead():
            work()
        inside = told()
        work()
        print(json.dumps([inside, told()]))


if __name__ == "__main__":
    main()
