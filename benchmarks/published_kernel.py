"""The published CUDA kernel of Bi-WKV, compiled from a checkout that the caller has; none of it is kept here.

Its interface: sources cuda/wkv_op.cpp and cuda/wkv_cuda.cu, compiled for a largest T (-DTmax, 1024 in
RWKV-UNet); forward(B, T, C, w, u, k, v, y) and backward(B, T, C, w, u, k, v, gy, gw, gu, gk, gv), all
contiguous float32 on CUDA, gw and gu of shape (B, C), the four gradients zero beforehand. 16-bit inputs are
cast, as its own callers do.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLAGS = ["-O3", "--use_fast_math", "--maxrregcount=60", "-Xptxas=-O3"]  # its own callers compile it so


class PublishedKernel(NamedTuple):
    """The compiled extension and the longest sequence it takes."""

    extension: Any
    longest: int

    def forward(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return y in the dtype of k."""
        y = torch.empty(k.shape, device=k.device)
        self.extension.forward(*k.shape, *(x.float().contiguous() for x in (w, u, k, v)), y)
        return y.to(k.dtype)

    def backward(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of w, u, k, v."""
        gw, gu = (torch.zeros(k.shape[0], k.shape[2], device=k.device) for _ in range(2))
        gk, gv = (torch.zeros(k.shape, device=k.device) for _ in range(2))
        given = [x.float().contiguous() for x in (w, u, k, v, g)]
        self.extension.backward(*k.shape, *given, gw, gu, gk, gv)
        return gw.sum(0), gu.sum(0), gk.to(k.dtype), gv.to(v.dtype)


def compile_published(folder: Path) -> PublishedKernel:
    """Compile the kernel of a checkout for the longest sequence that its own callers compile it for.

    Raises:
        FileNotFoundError: there is no cuda/wkv_op.cpp in the folder or below.
    """
    from torch.utils.cpp_extension import load

    found = sorted(folder.rglob("cuda/wkv_op.cpp"))
    if not found:
        raise FileNotFoundError(f"{folder.name} holds no cuda/wkv_op.cpp; give a checkout of RWKV-UNet")
    longest = longest_sequence(found[0].parents[1])
    extension = load(
        name=f"published_bi_wkv_{longest}",
        sources=[str(found[0]), str(found[0].with_name("wkv_cuda.cu"))],
        extra_cuda_cflags=[*FLAGS, f"-DTmax={longest}"],
    )
    return PublishedKernel(extension, longest)


def longest_sequence(folder: Path) -> int:
    """Return what the Python files of a folder set T_MAX to, or 1024."""
    for file in sorted(folder.glob("*.py")):
        setting = re.search(r"^T_MAX\s*=\s*(\d+)", file.read_text(errors="replace"), re.MULTILINE)
        if setting:
            return int(setting[1])
    return 1024
