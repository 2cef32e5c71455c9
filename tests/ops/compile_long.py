"""Compile the kernels that wait for each other for an H200, without one; print each and its spills.

Before them: registers, instructions, bytes of shared memory; instructions a token, barriers. Given a folder,
leave the code there, and compile what does unfit sequences again as well. With RWKVSEG_COMPILE_FEW in the
environment only some are compiled, for a test.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from compiled_code import compiled, count, dumped, sizes
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from rwkvseg.ops.wkv import tiled, tiled_long, triton_states


def report(kernel: Any, tile: tiled.Tiling, dtype: str, groups: int, *words: Any, name: str = "") -> None:
    gluon = "GROUPS" in kernel.arg_names
    options = tiled.options(name, tile, tiled_long.ITEMSIZE) if name else {}
    constants = options | sizes(tile) | {"GROUPS": groups, "EARLY": tiled.LONG_EARLY or not gluon}
    constants |= {"WIDE": triton_states.TYPES[torch.float32], "JOINS": 1}
    launch = {"num_warps": tile.warps, "maxnreg": tile.registers if gluon else 128}
    source = GluonASTSource if gluon else ASTSource
    done = compiled(kernel, constants, dtype, source=source, launch_cooperative_grid=True, **launch)
    if len(sys.argv) > 1:
        for kind, text in (("sass", dumped(done.asm["cubin"], "-sass")), ("ptx", done.asm["ptx"])):
            (Path(sys.argv[1]) / f"{'_'.join(map(str, words))}.{kind}").write_text(text)
    found = count(done.asm["cubin"], tile, options.get("UNROLLED", 1))
    rest = found.per_token, found.barriers, found.spills
    print(*words, found.registers, found.instructions, done.metadata.shared, *rest, flush=True)


CASES = [
    (name, 8, groups, dtype) for dtype in ("bf16", "fp16") for name in ("fwd", "bwd") for groups in (1, 0)
]
CASES += [(name, n, 1, "bf16") for name in ("fwd", "bwd") for n in tiled_long.BLOCKS[1:]]
FEW = [CASES[0], CASES[2], CASES[3]]


def main() -> None:
    for name, blocks, groups, dtype in FEW if "RWKVSEG_COMPILE_FEW" in os.environ else CASES:
        tile = tiled_long.long_tile(blocks, backward=name == "bwd")
        kernel = tiled_long.long_kernel(name)
        report(kernel, tile, dtype, groups, name, blocks, groups, dtype, name=f"long{name}")
    if len(sys.argv) > 1:
        for name in ("fwd", "bwd"):
            tile = tiled_long.long_tile(8, backward=name == "bwd")
            report(tiled_long.mend_kernel(name), tile, "bf16", 1, "mend", name)


if __name__ == "__main__":
    main()
