"""The operator alone: bidirectional WKV of any length, with gradients, on any device."""

import torch

from rwkvseg.ops import bi_wkv, naive_bi_wkv

torch.manual_seed(0)
batch, tokens, channels = 2, 1000, 16
w = torch.randn(channels) / tokens  # decay by distance; either sign
u = torch.randn(channels) / tokens  # bonus of the token itself
k = torch.randn(batch, tokens, channels, requires_grad=True)
v = torch.randn(batch, tokens, channels, requires_grad=True)

out = bi_wkv(w, u, k, v)  # linear in the number of tokens
out.square().sum().backward()

truth = naive_bi_wkv(
    w.double(), u.double(), k.detach().double(), v.detach().double()
)  # the O(T^2) definition
error = (out.detach() - truth).abs().max().item()
print(f"out {tuple(out.shape)}, largest difference from the definition {error:.1e}")
assert error < 1e-5
assert k.grad is not None
