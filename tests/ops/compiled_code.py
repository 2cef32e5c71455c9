"""What the code of a compiled kernel of bi_wkv takes, counted without a GPU."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

from rwkvseg.ops.wkv import tiled

TOKENS = {"p_k", "p_v", "p_g", "p_y", "p_gk", "p_gv"}
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Counts(NamedTuple):
    """Of a thread; instructions without those that do nothing, per token of all passes over its lanes."""

    registers: int
    instructions: int
    loops: list[int]  # instructions of those that go from block to block
    per_token: float
    barriers: int
    spills: int


def compiled(
    kernel: Any, constants: dict[str, Any], dtype: str, *, source: Any = GluonASTSource, **launch: Any
) -> Any:
    """Compile a kernel for compute capability 9.0; arguments p_... are pointers, others 32 bits wide."""
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif not name.startswith("p_"):
            signature[name] = "i32"
        else:
            kind = "i32" if name in ("p_unfit", "p_flags") else dtype if name in TOKENS else "fp32"
            signature[name] = f"*{kind}"
            attributes[(i,)] = [["tt.divisibility", 16]]
    values = {(i,): constants[name] for i, name in enumerate(kernel.arg_names) if name in constants}
    made = source(kernel, signature, constexprs=values, attrs=attributes)
    return triton.compile(made, target=GPUTarget("cuda", 90, 32), options=launch)


def sizes(tile: tiled.Tiling) -> dict[str, Any]:
    """Return what is the same for all of these kernels, beside a tiling."""
    return tile.sizes(576) | {"LIMIT": 72.0, "WARPS": tile.warps}


def dumped(binary: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [BINARIES / "cuobjdump", *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def count(binary: bytes, tile: tiled.Tiling, unrolled: int = 1) -> Counts:
    """Count; a loop whose code divides goes through the blocks, `unrolled` of them in a step."""
    code = dumped(binary, "-sass")
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", code, re.MULTILINE)
    rows = [(int(place, 16), text) for place, text in lines if not text.startswith("NOP")]
    jumps = [(place, re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)) for place, text in rows]
    spans = [(int(to[1], 16), place) for place, to in jumps if to and int(to[1], 16) < place]
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    bodies = [[text for place, text in rows if first <= place <= last] for first, last in inner]
    steps = tile.blocks // unrolled
    loops = [
        len(body)
        for body in bodies
        if steps > 1
        and any("MUFU.RCP" in text for text in body)
        and not any(re.search(r"\bDEPBAR", text) for text in body)
    ]
    return Counts(
        registers=max(map(int, re.findall(r"REG:(\d+)", dumped(binary, "-res-usage")))),
        instructions=len(rows),
        loops=loops,
        per_token=round((len(rows) + (steps - 1) * sum(loops)) / (tile.block * tile.blocks), 1),
        barriers=sum("BAR." in text for _, text in rows),
        spills=len(re.findall(r"\b(STL|LDL)\b", code)),
    )
