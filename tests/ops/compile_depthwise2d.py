"""Compile the depthwise kernels for an H200, without one; print what each takes.

    python tests/ops/compile_depthwise2d.py 5 7 9

A line a kernel: pass, side, channels side by side, registers, instructions that move registers to memory and
back, instructions a pixel and channel. Take TRITON_INTERPRET out of the environment.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from rwkvseg.ops.fused import triton_depthwise2d as kernels

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {"p_x": "*bf16", "p_y": "*bf16", "p_g": "*bf16", "p_taps": "*fp32", "p_parts": "*fp32"}


def compiled(kernel: Any, constants: dict[str, int], warps: int, registers: int) -> bytes:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else POINTERS.get(name, "i32") for name in names}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in POINTERS}
    values = {(i,): constants[name] for i, name in enumerate(names) if name in constants}
    source = (GluonASTSource if kernels.IN_GLUON else ASTSource)(kernel, signature, values, attributes)
    options = {"num_warps": warps, "maxnreg": registers}
    binary: bytes = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]
    return binary


def disassembled(binary: bytes) -> tuple[list[tuple[int, str]], int]:
    """Return addresses and instructions, and the registers of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        said = [
            subprocess.run(
                [BINARIES / "cuobjdump", flag, file.name], capture_output=True, text=True, check=True
            )
            for flag in ("-sass", "-res-usage")
        ]
    code = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);\s", said[0].stdout)
    registers = re.search(r"REG:(\d+)", said[1].stdout)
    assert registers is not None
    return [(int(at, 16), text) for at, text in code if "NOP" not in text], int(registers[1])


def longest_loop(code: list[tuple[int, str]]) -> int:
    """Number of instructions of it; 0 without a loop."""
    jumps = [(at, re.search(r"BRA.* 0x([0-9a-f]+)", text)) for at, text in code]
    starts = [(at, int(found[1], 16)) for at, found in jumps if found]
    return max(((at - start) // 16 + 1 for at, start in starts if start < at), default=0)


def line(name: str, side: int, channels: int) -> str:
    forward = name == "convolution"
    warps = kernels.WARPS if forward else kernels.WARPS_OF_GRADIENT
    lanes = kernels.lanes_over(channels, warps)
    rows = kernels.ROWS if forward else kernels.ROWS_OF_GRADIENT
    cols = kernels.COLS if forward else kernels.COLS_OF_GRADIENT
    constants = {"KH": side, "KW": side, "ROWS": rows, "COLS": cols}
    constants |= {"GROUP": lanes.group, "VECTOR": lanes.vector, "BLOCK": lanes.block}
    taps_h = kernels.taps_of_lane(side, side)
    if forward:
        kernel, registers = kernels.depthwise_conv2d_kernel, kernels.REGISTERS
    else:
        kernel, registers = kernels.depthwise_conv2d_weight_kernel, kernels.REGISTERS_OF_GRADIENT
        constants["TAPS_H"] = taps_h
    code, used = disassembled(compiled(kernel, constants, warps, registers))
    loop = longest_loop(code)
    shares = -(-side // taps_h)
    count = len(code) + loop * max(0, side - rows) if forward else loop * shares
    moved = sum(re.search(r"\b(STL|LDL)\b", text) is not None for _, text in code)
    return f"{name} {side} {lanes.group} {used} {moved} {count / (rows * cols * lanes.vector):.1f}"


def main() -> None:
    for side in map(int, sys.argv[1:]):
        for channels in (384, 48):
            for name in ("convolution", "weights"):
                print(line(name, side, channels), flush=True)


if __name__ == "__main__":
    main()
