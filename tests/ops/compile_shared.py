"""Compile the kernels that work from shared memory for an H200, without one; print what each takes.

With RWKVSEG_COMPILE_FEW in the environment only some of them, for a test.
"""

import os
from typing import Any

from compiled_code import choose, compiled, count, sizes

from rwkvseg.ops.wkv import tiled

CASES: list[tuple[str, int, str, dict[str, Any]]] = [
    ("fwd", 784, "bf16", {}),
    ("fwd", 1024, "bf16", {}),
    ("bwd", 784, "bf16", {}),
    ("bwd", 1024, "bf16", {}),
    ("fwd", 784, "fp32", {}),
    ("bwd", 512, "fp32", {}),
]
CASES += [("fwd", size, "bf16", {"UNROLLED": n}) for size in (784, 1024) for n in (2, 4, 8)]
CASES += [("fwd", size, "fp32", {"UNROLLED": n}) for size in (512, 784) for n in (2, 4)]
CASES += [("bwd", size, "bf16", {"LEAN": n}) for size in (784, 1024) for n in (1, 2, 3)]
CASES += [("bwd", 784, "bf16", {"LEAN": n, "KEPT": True}) for n in (0, 1, 2, 3)]
CASES += [("bwd", 1024, dtype, {"BACK_UNROLLED": n}) for dtype in ("bf16", "fp16") for n in (2, 4)]
CASES += [("bwd", 1024, "bf16", {"LEAN": n, "BACK_UNROLLED": 2}) for n in (1, 2, 3)]
CASES += [("bwd", 512, "fp32", {"LEAN": n, "BACK_UNROLLED": 2}) for n in (0, 3)]
FEW = [CASES[0], CASES[2], ("bwd", 784, "bf16", {"KEPT": True, "LEAN": 3})]


def main() -> None:
    for name, num_tokens, dtype, constants in FEW if "RWKVSEG_COMPILE_FEW" in os.environ else CASES:
        choose(constants)
        tile = tiled.shared_tile(num_tokens, 4 if dtype == "fp32" else 2, backward=name == "bwd")
        chosen = tiled.options(name, tile, 4 if dtype == "fp32" else 2) | sizes(tile)
        kernel, launch = tiled.shared_kernel(name), {"num_warps": tile.warps, "maxnreg": tile.registers}
        code = compiled(kernel, chosen, dtype, **launch)
        step = min(tiled.UNROLLED, tile.blocks) if name == "fwd" else tiled.BACK_UNROLLED
        found = count(code.asm["cubin"], tile, step if name == "fwd" or tile.blocks % step == 0 else 1)
        said = " ".join(f"{key}={value}" for key, value in constants.items())
        print(
            name,
            num_tokens,
            dtype,
            said,
            "registers",
            found.registers,
            "bytes",
            code.metadata.shared,
            end=" ",
        )
        print(
            "instructions", found.instructions, "of loops", *found.loops, "a token", found.per_token, end=" "
        )
        print("barriers", found.barriers, "spills", found.spills, flush=True)


if __name__ == "__main__":
    main()
