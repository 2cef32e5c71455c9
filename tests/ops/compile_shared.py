"""Compile the kernels that work from shared memory for an H200, without one; print what each takes."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

from rwkvseg.ops.wkv import tiled

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TOKENS = {"p_k", "p_v", "p_g", "p_y", "p_gk", "p_gv"}


def compiled(kernel: Any, tile: tiled.Tiling, dtype: str, **variant: Any) -> tuple[bytes, int]:
    sizes: dict[str, Any] = {
        "HALVES": "none",
        "EARLY": False,
        "PACKED": False,
        "LEAN": 0,
        "KEPT": False,
        "FEW_COPIES": False,
        "ONE_SUM": False,
        "UNROLLED": 1,
    } | variant
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


DIET = {"PACKED": True, "LEAN": 3, "FEW_COPIES": True, "ONE_SUM": True}
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
    ("bwd", 512, "fp32", {"HALVES": "both"} | DIET | {"PACKED": False}),
]


def main() -> None:
    for name, num_tokens, dtype, variant in CASES:
        itemsize = 4 if dtype == "fp32" else 2
        tile = tiled.shared_tile(num_tokens, itemsize, backward=name == "bwd")
        binary, shared = compiled(tiled.shared_kernel(name), tile, dtype, **variant)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(binary)
            file.flush()
            code, usage = (
                subprocess.run(
                    [str(BINARIES / "cuobjdump"), option, file.name],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
                for option in ("-sass", "-res-usage")
            )
        found = re.search(r"REG:(\d+)", usage)
        registers = found[1] if found else "?"
        spills = len(re.findall(r"\b(STL|LDL)\b", code))
        chosen = " ".join(f"{key}={value}" for key, value in variant.items())
        print(name, num_tokens, dtype, chosen, "registers", registers, "bytes", shared, "spills", spills)


if __name__ == "__main__":
    main()
