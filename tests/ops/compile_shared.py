"""Compile the kernels that work from shared memory for an H200, without one; print what each takes.

With RWKVSEG_COMPILE_FEW in the environment only some of them, for a test.
"""

import os
from typing import Any

from compiled_code import choose, compiled, count, sizes

from rwkvseg.ops.wkv import tiled

ALL = {"PACKED": True, "FEW_COPIES": True, "ONE_SUM": True}
DIET = ALL | {"LEAN": 3}
CASES: list[tuple[str, int, str, dict[str, Any]]] = [
    ("fwd", 784, "bf16", {}),
    ("fwd", 1024, "bf16", {}),
    ("bwd", 784, "bf16", {}),
    ("bwd", 1024, "bf16", {}),
    ("fwd", 784, "fp32", {}),
    ("bwd", 512, "fp32", {}),
    ("bwd", 784, "bf16", {"HALVES": "both"}),
    ("bwd", 784, "bf16", {"HALVES": "halves"}),
    ("bwd", 1024, "bf16", {"HALVES": "both"}),
    ("bwd", 784, "bf16", {"KEPT": True} | DIET),
    ("bwd", 784, "bf16", {"KEPT": True, "HALVES": "both"} | DIET),
    ("bwd", 1024, "bf16", {"HALVES": "both"} | DIET),
    ("bwd", 512, "fp32", {"HALVES": "both"} | DIET),
    ("fwd", 512, "bf16", ALL | {"UNROLLED": 4}),
    ("fwd", 512, "fp32", ALL | {"UNROLLED": 4}),
    ("fwd", 784, "fp32", ALL | {"UNROLLED": 7}),
]
CASES += [("fwd", size, "bf16", {name: True}) for size in (784, 1024) for name in ALL]
CASES += [("fwd", size, "bf16", ALL | {"UNROLLED": n}) for size in (784, 1024) for n in (1, 2, 4, 8)]
CASES += [("bwd", 1024, dtype, DIET | {"BACK_UNROLLED": n}) for dtype in ("bf16", "fp16") for n in (2, 4)]
CASES += [("bwd", 1024, "bf16", {"BACK_UNROLLED": 2}), ("bwd", 512, "fp32", DIET | {"BACK_UNROLLED": 2})]
CASES += [("bwd", 784, "bf16", DIET | {"BACK_UNROLLED": 2, "HALVES": "both", "KEPT": True})]
CASES += [("bwd", 1024, "bf16", DIET | {"BACK_UNROLLED": 4, "HALVES": "both"})]
CASES += [("fwd", size, "fp16", ALL | {"UNROLLED": n}) for size in (784, 1024) for n in (1, 8)]

FEW = [CASES[0], CASES[2], ("bwd", 784, "bf16", {"KEPT": True, "HALVES": "both"} | DIET)]


def main() -> None:
    for name, num_tokens, dtype, constants in FEW if "RWKVSEG_COMPILE_FEW" in os.environ else CASES:
        choose({key: value for key, value in constants.items() if key != "HALVES"})
        tile = tiled.shared_tile(num_tokens, 4 if dtype == "fp32" else 2, backward=name == "bwd")
        chosen = tiled.options(name, tile, 4 if dtype == "fp32" else 2)
        chosen |= sizes(tile) | {"HALVES": constants.get("HALVES", "none"), "EARLY": False}
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
