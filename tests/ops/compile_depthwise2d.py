"""Compile the depthwise kernels for an H200, without one; print what each takes.

    python tests/ops/compile_depthwise2d.py 5 7 9

A line a kernel: pass, side, stride, channels side by side, registers, instructions that move registers to
memory and back, instructions a pixel of the input and channel. The gradient of the input has a kernel of its
own for stride 2 alone. Take TRITON_INTERPRET out of the environment.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from rwkvseg.ops.fused import triton_depthwise2d as kernels
from rwkvseg.ops.fused.triton_depthwise2d_input import depthwise_conv2d_input_kernel

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = dict.fromkeys(("p_x", "p_y", "p_g", "p_gx"), "*bf16") | {"p_taps": "*fp32", "p_parts": "*fp32"}
PASSES = [("convolution", 1), ("weights", 1), ("convolution", 2), ("weights", 2), ("input", 2)]


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


def patch(name: str, stride: int) -> tuple[int, int]:
    """Rows and columns of the patch of a lane."""
    if name == "input":
        return kernels.ROWS_OF_INPUT, kernels.COLS_OF_INPUT
    if name == "convolution":
        return [(kernels.ROWS, kernels.COLS), (kernels.ROWS_STRIDED, kernels.COLS_STRIDED)][stride - 1]
    strided = kernels.ROWS_OF_GRADIENT_STRIDED, kernels.COLS_OF_GRADIENT_STRIDED
    return [(kernels.ROWS_OF_GRADIENT, kernels.COLS_OF_GRADIENT), strided][stride - 1]


def rounds(name: str, stride: int, side: int, rows: int) -> int:
    """How often the loop of a kernel runs beyond the once that all its code is counted."""
    if name == "convolution":
        return max(0, side - stride * (rows - 1) - 1)
    top = side // 2 + side // 4 * 2  # as in the kernel of the input's gradient
    return max(0, top // 2 - (top + rows - side + 1) // 2)


def line(name: str, stride: int, side: int, channels: int) -> str:
    of_weights = name == "weights"
    warps = kernels.WARPS_OF_GRADIENT if of_weights else kernels.WARPS
    lanes = kernels.lanes_over(channels, warps)
    rows, cols = patch(name, stride)
    constants = {"KH": side, "KW": side, "ROWS": rows, "COLS": cols}
    constants |= {"GROUP": lanes.group, "VECTOR": lanes.vector, "BLOCK": lanes.block}
    if name == "input":
        kernel, registers = depthwise_conv2d_input_kernel, kernels.REGISTERS
    else:
        kernel, registers = kernels.depthwise_conv2d_kernel, kernels.REGISTERS
        constants["STRIDE"] = stride
    taps_h = kernels.taps_of_lane(side, side)
    if of_weights:
        kernel, registers = kernels.depthwise_conv2d_weight_kernel, kernels.REGISTERS_OF_GRADIENT
        constants["TAPS_H"] = taps_h
    code, used = disassembled(compiled(kernel, constants, warps, registers))
    loop = longest_loop(code)
    shares = -(-side // taps_h)
    count = loop * shares if of_weights else len(code) + loop * rounds(name, stride, side, rows)
    pixels = rows * cols * (1 if name == "input" else stride**2)
    moved = sum(re.search(r"\b(STL|LDL)\b", text) is not None for _, text in code)
    return f"{name} {side} {stride} {lanes.group} {used} {moved} {count / (pixels * lanes.vector):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sides", nargs="+", type=int)
    parser.add_argument("--channels", nargs="+", type=int, default=[384, 48])
    options = parser.parse_args()
    for side in options.sides:
        for channels in options.channels:
            for name, stride in PASSES:
                print(line(name, stride, side, channels), flush=True)


if __name__ == "__main__":
    main()
