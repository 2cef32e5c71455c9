"""Inputs and error measures that the tests of bi_wkv share."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rwkvseg.ops.wkv import fixed_reference, matmul, running_max, scan

Operator = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

FORMS = {
    "guard": scan._choose_form,
    "recurrence, float32": lambda w, u, k: (fixed_reference, torch.float32),
    "recurrence, float64": lambda w, u, k: (fixed_reference, torch.float64),
    "products, float32": lambda w, u, k: (matmul, torch.float32),
    "products, float64": lambda w, u, k: (matmul, torch.float64),
    "running maximum, float64": lambda w, u, k: (running_max, torch.float64),
}


class Results(NamedTuple):
    """What an operator returns, and the gradients of a weighted sum of it."""

    y: Tensor
    gw: Tensor
    gu: Tensor
    gk: Tensor
    gv: Tensor


class Inputs(NamedTuple):
    w: Tensor
    u: Tensor
    k: Tensor
    v: Tensor
    g: Tensor

    def to(self, dtype: torch.dtype, *, both: bool = True) -> "Inputs":
        """Round k, v, g, and w, u as well if `both`."""
        w, u = (x.to(dtype) if both else x for x in (self.w, self.u))
        return Inputs(w, u, *(x.to(dtype) for x in (self.k, self.v, self.g)))


def inputs(shape: tuple[int, int, int], *, keys: str = "10", decay: float = 3.0, seed: int = 0) -> Inputs:
    """Random float32 inputs; keys: 'constant', 'one-hot', or how far they reach to both sides of zero."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens, channels = shape[1:]
    w = torch.full((channels,), decay / num_tokens)
    u = torch.randn(channels, generator=generator)
    v, g = (torch.randn(shape, generator=generator) for _ in range(2))
    if keys == "constant":
        k = torch.full(shape, 7.0)
    elif keys == "one-hot":
        k = torch.zeros(shape)
        k[:, num_tokens // 3] = 30.0
    else:
        k = (2 * torch.rand(shape, generator=generator) - 1) * float(keys)
    return Inputs(w, u, k, v, g)


def run(operator: Operator, x: Inputs) -> Results:
    leaves = [part.detach().clone().requires_grad_() for part in x[:4]]
    y = operator(*leaves)
    return Results(y.detach(), *torch.autograd.grad(y, leaves, x.g))


def errors(actual: Results, exact: Results, x: Inputs) -> dict[str, float]:
    """Largest error of each result in units of its largest value, or of 1e-3 of its natural size.

    A NaN counts as infinite: `max` of several would pass it over.
    """
    batch, num_tokens, _ = x.k.shape
    v, g = float(x.v.abs().max()), float(x.g.abs().max())
    natural = (v, batch * num_tokens**2 * g * v, batch * num_tokens * g * v, g * v, g)
    apart = [
        (a.double() - e).abs().nan_to_num(torch.inf, torch.inf) for a, e in zip(actual, exact, strict=True)
    ]
    return {
        name: float(a.max()) / max(float(e.abs().max()), 1e-3 * size)
        for name, a, e, size in zip(Results._fields, apart, exact, natural, strict=True)
    }
