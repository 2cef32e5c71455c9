"""Kernels compiled ahead: none is launched meanwhile, all are found afterwards; a step leaves no trace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rwkvseg.ops.ahead import kernels_compiled_ahead
from rwkvseg.ops.backends import triton_is_installed
from rwkvseg.training.cuda_graphs import compile_kernels_of_step

needs_triton = pytest.mark.skipif(not triton_is_installed(), reason="the package triton is not installed")


@needs_triton
@pytest.mark.slow
def test_kernels_are_compiled_once_and_found() -> None:
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_ahead.py")
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    inside, outside = json.loads(done.stdout.splitlines()[-1])
    assert inside == {"compiled": 4}
    assert outside == {"found": 4, "launched": 7}


@needs_triton
def test_what_was_set_before_is_set_again() -> None:
    from triton import knobs

    with kernels_compiled_ahead():
        assert knobs.runtime.jit_cache_hook is not None
    assert knobs.runtime.jit_cache_hook is None
    with pytest.raises(RuntimeError, match="no"), kernels_compiled_ahead():
        Refuses()(torch.ones(1))
    assert knobs.runtime.jit_cache_hook is None


class Heads(nn.Module):
    """Two outputs, one weight that reaches none, and a random number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.unused, self.drop = nn.Conv2d(3, 2, 1), nn.Linear(2, 2), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> list[Tensor]:
        y: Tensor = self.drop(self.first(x))
        return [y, y[:, :, ::2]]


class Refuses(nn.Module):
    """One that cannot run."""

    def __init__(self, error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error("no")


def test_gradients_and_random_numbers_are_as_before() -> None:
    network, before = Heads(), torch.get_rng_state()
    compile_kernels_of_step(network, (torch.ones(1, 3, 4, 4),))
    assert all(weight.grad is None for weight in network.parameters())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("error", [RuntimeError, AttributeError, KeyError])  # as inside another Triton
def test_what_fails_is_left_to_the_step(error: type[Exception]) -> None:
    compile_kernels_of_step(Refuses(error), (torch.ones(1),))
