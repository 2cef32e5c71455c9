"""Compile the kernels that work from shared memory for an H200, without one; print what each takes.

With RWKVSEG_COMPILE_FEW in the environment only some of them, for a test.
"""

import os

from compiled_code import compiled, count, sizes

from rwkvseg.ops.wkv import tiled

CASES = [(name, size, "bf16", 2) for name in ("fwd", "bwd") for size in (784, 1024)]
CASES += [("fwd", 784, "fp32", 2), ("bwd", 512, "fp32", 2), ("bwd", 1024, "fp16", 2)]
CASES += [(name, 1024, "bf16", n) for name in ("fwd", "bwd") for n in (1, 4)]
FEW = [CASES[0], CASES[2], CASES[5]]


def main() -> None:
    for name, num_tokens, dtype, unrolled in FEW if "RWKVSEG_COMPILE_FEW" in os.environ else CASES:
        itemsize = 4 if dtype == "fp32" else 2
        tiled.UNROLLED = unrolled
        tile = tiled.shared_tile(num_tokens, itemsize, backward=name == "bwd")
        chosen = tiled.options(name, tile, itemsize) | sizes(tile)
        kernel, launch = tiled.shared_kernel(name), {"num_warps": tile.warps, "maxnreg": tile.registers}
        code = compiled(kernel, chosen, dtype, **launch)
        found = count(code.asm["cubin"], tile, chosen["UNROLLED"])
        print(
            name, num_tokens, dtype, "written out", chosen["UNROLLED"], "registers", found.registers, end=" "
        )
        print(
            "bytes",
            code.metadata.shared,
            "instructions",
            found.instructions,
            "of loops",
            *found.loops,
            end=" ",
        )
        print("a token", found.per_token, "barriers", found.barriers, "spills", found.spills, flush=True)


if __name__ == "__main__":
    main()
