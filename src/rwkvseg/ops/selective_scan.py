"""The selective scan of Mamba (arXiv:2312.00752, section 3.3) in plain torch, to be compiled and exported.

B: batch, T: tokens, E: channels, N: states of a channel. The states of LENGTH tokens are made one after the
other, in all chunks at once; the same task for the chunks' last states, 1 / LENGTH of the tokens, links them.
Work and memory grow like T E N. No exponent is positive, so nothing overflows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LENGTH = 16
EXPORT_LEVELS = 3  # leaves (T / LENGTH^LEVELS)^2 E N elements, less than T E N for T below 16.7 million
NEVER = -1e32  # logarithm of no share at all


def naive_selective_scan(x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Selective scan by its definition, token by token.

    state[t] = exp(step[t] rate) state[t - 1] + step[t] b[t] x[t],  out[t] = sum over N of c[t] state[t]

    Args:
        x: values (B, T, E).
        step: positive step sizes (B, T, E).
        rate: negative rates (E, N).
        b: shares of the values that enter the states (B, T, N).
        c: shares of the states that are read (B, T, N).

    Returns:
        (B, T, E).
    """
    state = torch.zeros_like(x[:, 0]).unsqueeze(2) * rate  # (B, E, N)
    out = []
    for t in range(x.shape[1]):
        entering = (step[:, t] * x[:, t]).unsqueeze(2) * b[:, t].unsqueeze(1)
        state = torch.exp(step[:, t].unsqueeze(2) * rate) * state + entering
        out.append((state * c[:, t].unsqueeze(1)).sum(2))
    return torch.stack(out, 1)


def selective_scan(x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Selective scan, see `naive_selective_scan`, in chunks; it computes in float32, for float64 in float64.

    Example:
        >>> tokens, rate = torch.rand(5, 1, 40, 3).unbind(), -torch.ones(3, 3)
        >>> fast, slow = (f(*tokens[:2], rate, *tokens[2:4]) for f in (selective_scan, naive_selective_scan))
        >>> torch.allclose(fast, slow, atol=1e-4)
        True
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    values, step, rate, b, c = (part.to(wide) for part in (x, step, rate, b, c))
    entering = (step * values).unsqueeze(3) * b.unsqueeze(2)  # (B, T, E, N)
    states = _states(step.unsqueeze(3) * rate, entering, level=0)
    return (states * c.unsqueeze(2)).sum(3).to(x.dtype)


def _states(exponent: Tensor, entering: Tensor, level: int) -> Tensor:
    """Return state[t] = exp(exponent[t]) state[t - 1] + entering[t], all (B, T, E, N)."""
    num_tokens = entering.shape[1]
    if level == EXPORT_LEVELS if torch.compiler.is_exporting() else num_tokens <= LENGTH:
        return _states_of_few(exponent, entering)
    exponents, parts = _cut(exponent).unbind(2), _cut(entering).unbind(2)
    since_start, inside = [exponents[0]], [parts[0]]
    for this_exponent, part in zip(exponents[1:], parts[1:], strict=True):
        inside.append(this_exponent.exp() * inside[-1] + part)
        since_start.append(since_start[-1] + this_exponent)
    last = _states(since_start[-1], inside[-1], level + 1)
    before = F.pad(last, (0, 0, 0, 0, 1, -1)).unsqueeze(2)  # what each chunk starts from
    states = torch.stack(inside, 2) + torch.stack(since_start, 2).exp() * before
    return states.flatten(1, 2).narrow(1, 0, num_tokens)


def _states_of_few(exponent: Tensor, entering: Tensor) -> Tensor:
    """Return the same, each token from each earlier one."""
    total = exponent.cumsum(1)
    place = torch.arange(exponent.shape[1], device=exponent.device)
    is_later = (place > place.unsqueeze(1)).unsqueeze(2).unsqueeze(3)  # (to, from, 1, 1)
    share = (total.unsqueeze(2) - total.unsqueeze(1)).masked_fill(is_later, NEVER).exp()
    return (share * entering.unsqueeze(1)).sum(2)


def _cut(x: Tensor) -> Tensor:
    """Cut (B, T, E, N) into chunks (B, n, LENGTH, E, N), filled up with zeros."""
    # an exporter would take an axis of size 1 for fixed, so there are never fewer than two chunks
    n = x.shape[1] // LENGTH + 2 if torch.compiler.is_exporting() else -(-x.shape[1] // LENGTH)
    batch, num_tokens, channels, states = x.shape
    return F.pad(x, (0, 0, 0, 0, 0, n * LENGTH - num_tokens)).reshape(batch, n, LENGTH, channels, states)
