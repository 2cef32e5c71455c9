"""Bi-WKV while a graph is exported: standard operators only, no branch on values, no loop over the tokens.

Every sum is a softmax, so nothing can overflow and no guard is needed. Tokens that lie together act on a far
one like a single token: its key is the logarithm of the sum of their weights, its value their weighted mean.
Each chunk of LENGTH tokens sends one such token to all later chunks and one to all earlier ones. A token then
sees its own chunk and two tokens more: what was before the chunk, at the place just before it, and what comes
after. To find these two is the same task for 1 / LENGTH of the tokens, one way only. LEVELS levels of chunks
solve it; the few tokens left by then see each other one by one.

Legend: tokens (2, B, n, L, C) are keys and values of B images, n chunks of L tokens, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LENGTH = 8  # the largest temporaries have (LENGTH + 2) T C elements; shorter chunks need more levels
LEVELS = 3  # leaves (T / LENGTH^LEVELS)^2 2 C elements: less than the above for T below 1.3 million
NOTHING = -1e32  # key of no token: its weight is 0, and the sum of two such keys is still a number


def export_bi_wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bi-WKV, see `rwkvseg.ops.bi_wkv`, where B and T may be symbolic. w, u: (C,)  k, v: (B, T, C) -> same.

    It computes in float32, for float64 in float64. Autograd passes through, keeping every temporary.
    """
    wide = torch.float64 if k.dtype == torch.float64 else torch.float32
    w, u = w.to(wide), u.to(wide)
    tokens = _cut(torch.stack([k.to(wide).clamp_min(NOTHING), v.to(wide)]))
    bias = _bias(w, torch.arange(-1, LENGTH + 1, device=w.device))  # of the chunk and one place on each side
    back, forth = torch.stack(_attend(bias[:: LENGTH + 1, 1:-1], tokens)).unbind(3)
    sent = torch.cat([forth, back.flip(2)], 3)  # as further channels, both ways are one
    past, future = _past(w.repeat(2) * LENGTH, sent, LEVELS - 1).chunk(2, 3)
    seen = torch.cat([past.unsqueeze(3), tokens, future.flip(2).unsqueeze(3)], 3)
    itself = torch.eye(LENGTH + 2, dtype=torch.bool, device=w.device).unsqueeze(2)
    _, out = _attend(torch.where(itself, u, bias)[1:-1], seen)
    return out.flatten(1, 2).narrow(1, 0, k.shape[1]).to(k.dtype)


def _past(w: Tensor, tokens: Tensor, levels: int) -> Tensor:
    """Return all that is before each of the tokens (2, B, T, C) as one token at the place just before it."""
    if levels == 0:
        place = torch.arange(tokens.shape[2], device=w.device)
        return torch.stack(_attend(_bias_of_earlier(w, place), tokens.unsqueeze(2))).squeeze(2)
    place = torch.arange(-1, LENGTH + 1, device=w.device)
    chunks = _cut(tokens)
    sent = torch.stack(_attend(_bias(w, place)[-1:, 1:-1], chunks)).squeeze(3)
    before = _past(w * LENGTH, sent, levels - 1)
    seen = torch.cat([before.unsqueeze(3), chunks], 3)
    past = torch.stack(_attend(_bias_of_earlier(w, place)[1:-1, :-1], seen))
    return past.flatten(2, 3).narrow(2, 0, tokens.shape[2])


def _cut(tokens: Tensor) -> Tensor:
    """Cut tokens (2, B, T, C) into chunks (2, B, n, L, C), filled up with tokens of no weight."""
    _, batch, num_tokens, channels = tokens.shape
    # never a single chunk: an exporter would take an axis of size 1 for fixed, or guard against it
    n = num_tokens // LENGTH + 2
    filled = F.pad(tokens, (0, 0, 0, n * LENGTH - num_tokens), value=NOTHING)
    return filled.reshape(2, batch, n, LENGTH, channels)


def _attend(bias: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return, as keys and values (B, n, R, C), what R places see of their chunk; bias: (R, L, C)."""
    key, value = tokens.unsqueeze(3).unbind(0)
    logit = bias + key  # (B, n, R, L, C)
    largest = logit.amax(3, keepdim=True)
    weight = torch.exp(logit - largest)
    total = weight.sum(3)
    return total.log() + largest.squeeze(3), (weight * value).sum(3) / total


def _bias(w: Tensor, place: Tensor) -> Tensor:
    """Return the bias -(|i - j| - 1) w of each place for each, (places, places, C)."""
    gap = (place - place.unsqueeze(1)).abs().unsqueeze(2)
    return (1 - gap) * w


def _bias_of_earlier(w: Tensor, place: Tensor) -> Tensor:
    """Return the same, with NOTHING for a place itself and for later ones."""
    return _bias(w, place).masked_fill((place >= place.unsqueeze(1)).unsqueeze(2), NOTHING)
