"""Compile the kernels that work from shared memory for an H200, without one; print what each takes.

With RWKVSEG_COMPILE_FEW in the environment only some of them, for a test.
"""

import os
from typing import Any

import triton
from compiled_code import choose, count
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

from rwkvseg.ops.wkv import tiled

TOKENS = {"p_k", "p_v", "p_g", "p_y", "p_gk", "p_gv"}


def compiled(name: str, tile: tiled.Tiling, dtype: str, halves: str) -> tuple[bytes, int]:
    kernel = tiled.shared_kernel(name)
    sizes: dict[str, Any] = tiled.options(name, tile, 4 if dtype == "fp32" else 2)
    sizes |= {"HALVES": halves, "EARLY": False}
    sizes |= {"C": 576, "LIMIT": 72.0, "WARPS": tile.warps, "BLOCK": tile.block, "BLOCKS": tile.blocks}
    sizes |= {"CHUNKS": tile.chunks, "CHANNELS": tile.channels}
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in sizes:
            signature[name] = "constexpr"
        elif name in ("T", "pause", "processors", "full", "num_flags"):
            signature[name] = "i32"
        else:
            kind = "i32" if name == "p_unfit" else dtype if name in TOKENS else "fp32"
            signature[name] = f"*{kind}"
            attributes[(i,)] = [["tt.divisibility", 16]]
    constants = {(i,): sizes[name] for i, name in enumerate(kernel.arg_names) if name in sizes}
    source = GluonASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": tile.warps, "maxnreg": tile.registers}
    found = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return found.asm["cubin"], found.metadata.shared


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
        binary, shared = compiled(name, tile, dtype, constants.get("HALVES", "none"))
        step = min(tiled.UNROLLED, tile.blocks) if name == "fwd" else tiled.BACK_UNROLLED
        found = count(binary, tile, step if name == "fwd" or tile.blocks % step == 0 else 1)
        chosen = " ".join(f"{key}={value}" for key, value in constants.items())
        print(name, num_tokens, dtype, chosen, "registers", found.registers, "bytes", shared, end=" ")
        print(
            "instructions", found.instructions, "of loops", *found.loops, "a token", found.per_token, end=" "
        )
        print("barriers", found.barriers, "spills", found.spills, flush=True)


if __name__ == "__main__":
    main()
