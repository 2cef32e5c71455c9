"""Compile the kernels that wait for each other for an H200, without one; print each and its spills.

Before them: registers, instructions, bytes of shared memory. Given a folder, leave the code there, and
compile what does unfit sequences again as well.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from rwkvseg.ops.wkv import tiled, tiled_long, triton_states

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TOKENS = {"p_k", "p_v", "p_g", "p_y", "p_gk", "p_gv"}


def compiled(kernel: Any, tile: tiled.Tiling, dtype: str, groups: int, **variant: Any) -> Any:
    sizes: dict[str, Any] = {"PACKED": False, "LEAN": 0, "KEPT": False, "FEW_COPIES": False, "ONE_SUM": False}
    sizes |= {"UNROLLED": 1} | variant
    sizes |= {"C": 576, "LIMIT": 72.0, "WARPS": tile.warps, "BLOCK": tile.block, "BLOCKS": tile.blocks}
    sizes |= {"CHUNKS": tile.chunks, "CHANNELS": tile.channels, "GROUPS": groups, "FETCH": False}
    sizes |= {"WIDE": triton_states.TYPES[torch.float32], "EARLY": True, "JOINS": 1, "TOGETHER": True}
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in sizes:
            signature[name] = "constexpr"
        elif not name.startswith("p_"):
            signature[name] = "i32"
        else:
            kind = "i32" if name == "p_flags" else dtype if name in TOKENS else "fp32"
            signature[name] = f"*{kind}"
            attributes[(i,)] = [["tt.divisibility", 16]]
    constants = {(i,): sizes[name] for i, name in enumerate(kernel.arg_names) if name in sizes}
    kind = GluonASTSource if "GROUPS" in kernel.arg_names else ASTSource
    source = kind(kernel, signature, constexprs=constants, attrs=attributes)
    registers = tile.registers if "GROUPS" in kernel.arg_names else 128
    options = {"num_warps": tile.warps, "maxnreg": registers, "launch_cooperative_grid": True}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def dumped(binary: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [BINARIES / "cuobjdump", *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def report(kernel: Any, tile: tiled.Tiling, dtype: str, groups: int, *words: Any) -> None:
    done = compiled(kernel, tile, dtype, groups)
    code = dumped(done.asm["cubin"], "-sass")
    if len(sys.argv) > 1:
        for kind, text in (("sass", code), ("ptx", done.asm["ptx"])):
            (Path(sys.argv[1]) / f"{'_'.join(map(str, words))}.{kind}").write_text(text)
    registers = max(map(int, re.findall(r"REG:(\d+)", dumped(done.asm["cubin"], "-res-usage"))))
    instructions = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.MULTILINE))
    spills = len(re.findall(r"\b(STL|LDL)\b", code))
    print(*words, registers, instructions, done.metadata.shared, spills, flush=True)


def main() -> None:
    spans = ((1024, 1), (1024, 0), (512, 1), (512, 0))  # tokens, groups
    cases = [(name, span, groups, "bf16") for name in ("fwd", "bwd") for span, groups in spans]
    cases += [("fwd", 512, 1, "fp32"), ("bwd", 512, 1, "fp32")]
    for name, span, groups, dtype in cases:
        itemsize = 4 if dtype == "fp32" else 2
        tile = tiled_long.long_tile(span, itemsize, backward=name == "bwd")
        report(tiled_long.long_kernel(name), tile, dtype, groups, name, span, groups, dtype)
    if len(sys.argv) > 1:
        for name in ("fwd", "bwd"):
            tile = tiled_long.long_tile(1024, 2, backward=name == "bwd")
            report(tiled_long.mend_kernel(name), tile, "bf16", 1, "mend", name)


if __name__ == "__main__":
    main()
