"""Bi-WKV by doubling: about log2(T) operations on whole tensors, for devices that start few operations best.

The sums of fixed_reference.py, with its one reference key per image and channel, but taken over windows that
double: a state over s tokens becomes one over 2 s by adding lam^s times the state s tokens away. More
arithmetic than the recurrence, far fewer operations to start: what counts on a GPU.

Legend: pairs (2, B, T, C) hold numerator and denominator, that is values times weights and the weights.
"""

import torch
from torch import Tensor

from rwkvseg.ops.wkv.fixed_reference import adjoint_pairs, centred


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Write bi_wkv of k, v (B, T, C) into out. w, u (C,) have the dtype to compute in; k, v, out any."""
    weight = _weight(w, k)
    pairs = torch.stack([weight * v, weight])
    past, future = _both_ways(w, pairs)
    num, den = past.add_(future).addcmul_(pairs, torch.exp(u))
    torch.div(num, den, out=out)


def backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, g: Tensor, *, gk: Tensor, gv: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the gradients of k and v from g, that of the output; return those of w and u, (C,).

    The formulas stand in fixed_reference.py.
    """
    weight = _weight(w, k)
    v = centred(weight, v)
    pairs = torch.stack([weight * v, weight])
    past, future = _both_ways(w, pairs)
    adjoint = torch.empty_like(pairs)
    both, others, hq = pairs.unbind(), torch.add(past, future).unbind(), adjoint.unbind()
    own, own_apart = adjoint_pairs(
        torch.exp(u), (both[0], both[1]), (others[0], others[1]), v, g, out=(hq[0], hq[1])
    )
    past_r, future_r = _both_ways(w, adjoint)
    across = past.mul_(future_r).addcmul_(future, past_r)
    gw = -torch.exp(-w) * (across[0] - across[1]).sum((0, 1))
    r, rq = past_r.add_(future_r)
    torch.addcmul(own, weight, r, out=gv)
    torch.sub(r.mul_(v).sub_(rq).mul_(weight), own_apart, out=gk)
    return gw, -own_apart.sum((0, 1))


def _weight(w: Tensor, k: Tensor) -> Tensor:
    return torch.sub(k, k.amax(1, keepdim=True).to(w.dtype)).exp_()


def _both_ways(w: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states of the past and of the future of every token, (2, B, T, C) each."""
    past, future = _past(w, torch.stack([pairs, pairs.flip(2)]))
    return past, future.flip(2)


def _past(w: Tensor, x: Tensor) -> Tensor:
    """Return the state before every token, for x (..., T, C)."""
    num_tokens = x.shape[-2]
    num_steps = max(0, num_tokens - 2).bit_length()  # windows 1, 2, 4, ... until T - 1 tokens are covered
    margin = 1 << max(
        0, num_steps - 1
    )  # zeros before the first token, as many as the longest step reaches back
    shape = (*x.shape[:-2], margin + num_tokens, x.shape[-1])
    here, there = x.new_zeros(shape), x.new_zeros(shape)
    here[..., margin + 1 :, :] = x[..., :-1, :]
    powers = torch.exp(-w * 2 ** torch.arange(num_steps, device=w.device).unsqueeze(1))
    for i, power in enumerate(powers.unbind()):
        away = here[..., margin - 2**i : -(2**i), :]
        torch.addcmul(here[..., margin:, :], away, power, out=there[..., margin:, :])
        here, there = there, here
    return here[..., margin:, :]
