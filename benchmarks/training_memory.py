"""Memory of training steps, as `rwkvseg plan` estimates it and as it is measured, on a GPU or on the CPU.

    python benchmarks/training_memory.py [--device cuda] [--no-graphs] [-o benchmarks/results]

Each row is a process of its own that makes three AdamW steps. On a GPU: bfloat16 autocast, recorded as CUDA
graphs where possible, as recipes do. Torch's allocator may reserve as much as was estimated and not a byte
more, so that a row either fits or fails; shown are its peaks, allocated and reserved, and what the driver
says that the process holds at the end beyond CUDA itself. On the CPU: float32, the growth of resident memory
(ru_maxrss) against the same estimate without the share of bfloat16; nothing is limited there. Exit code 1
where a row fails.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import report
import torch

from rwkvseg.memory import show_size
from rwkvseg.training.cuda_graphs import graphed
from rwkvseg.training.losses import SegmentationLoss
from rwkvseg.training.plan_memory import MIXED, Candidate, estimate_memory
from rwkvseg.training.recipe_module import laid_out

ANISOTROPIC = (("strides", ((2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))),)
TWICE = (("gradient_checkpointing", True),)
ROWS = {
    "cuda": [
        (Candidate("rwkv_unet_nano", 3, 2, (256, 256)), 32),
        (Candidate("rwkv_unet_tiny", 3, 2, (256, 256)), 32),
        (Candidate("rwkv_unet_tiny", 3, 2, (256, 384)), 16),
        (Candidate("rwkv_unet_tiny", 3, 2, (512, 512), TWICE), 16),
        (Candidate("rwkv_unet_base", 1, 9, (512, 512)), 8),
        (Candidate("urwkv3d_tiny", 1, 3, (48, 64, 48)), 8),
        (Candidate("urwkv3d_tiny", 1, 14, (128, 128, 64), ANISOTROPIC), 2),
        (Candidate("urwkv3d_base", 1, 14, (128, 128, 64), ANISOTROPIC), 2),
    ],
    "cpu": [
        (Candidate("rwkv_unet_nano", 3, 2, (256, 256)), 4),
        (Candidate("rwkv_unet_tiny", 3, 2, (192, 192)), 4),
        (Candidate("urwkv3d_tiny", 1, 3, (48, 64, 48)), 2),
        (Candidate("urwkv3d_tiny", 1, 9, (64, 64, 32), ANISOTROPIC), 2),
    ],
}
STEPS = 3


def train_shortly(candidate: Candidate, batch: int, device: str, *, graphs: bool) -> None:
    """Make steps in the order in which a run makes them: old gradients live through the forward pass."""
    network = candidate.build().to(device).train()
    if len(candidate.sides) == 2:
        network = network.to(memory_format=torch.channels_last)
    stride = getattr(network, "stride", ())
    loss = SegmentationLoss(stride=stride if isinstance(stride, tuple) else ())
    cuda = device == "cuda"
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=cuda)
    image = laid_out(torch.rand(batch, candidate.channels, *candidate.sides, device=device))
    label = torch.randint(candidate.classes, (batch, *candidate.sides), dtype=torch.uint8, device=device)
    record = cuda and graphs and candidate.overrides != TWICE
    call: Any = (graphed(network, (image,), autocast=torch.bfloat16) if record else None) or network
    for _ in range(STEPS):
        with torch.autocast(device, torch.bfloat16, enabled=cuda):
            outputs = call(image)
        error = loss(outputs, label)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()


def measure_row(candidate: Candidate, batch: int, device: str, *, graphs: bool) -> dict[str, int]:
    """Bytes of one row; to be called in a process of its own."""
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        free_before, total = torch.cuda.mem_get_info()  # CUDA is up from here on
        memory = estimate_memory(candidate, batch)
        torch.cuda.set_per_process_memory_fraction(min(1.0, (memory.total - memory.context) / total))
        train_shortly(candidate, batch, device, graphs=graphs)
        free, _ = torch.cuda.mem_get_info()
        peaks = {
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
        }
        return peaks | {"held": free_before - free}
    small = Candidate(candidate.name, candidate.channels, candidate.classes, (32,) * len(candidate.sides))
    train_shortly(small, 2, device, graphs=False)  # what libraries load once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train_shortly(candidate, batch, device, graphs=False)
    return {"grown": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}


def run_row(index: int, device: str, *, graphs: bool) -> dict[str, int]:
    """Measure row `index` in a process of its own."""
    options = ["--device", device, "--row", str(index), *([] if graphs else ["--no-graphs"])]
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print("".join(done.stderr.splitlines(keepends=True)[-3:]), file=sys.stderr)
        return {"failed": done.returncode}
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=sorted(ROWS), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--no-graphs", action="store_true")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    rows = ROWS[options.device]
    if options.row is not None:
        found = measure_row(*rows[options.row], options.device, graphs=not options.no_graphs)
        print(json.dumps(found))
        return 0
    text, failed = table(options.device, graphs=not options.no_graphs)
    print(text)
    if options.out is not None:
        report.save(options.out, "training_memory", options.device, text)
    return int(failed)


def table(device: str, *, graphs: bool) -> tuple[str, bool]:
    """Markdown, and whether a row failed."""
    measured = ("allocated", "reserved", "held") if device == "cuda" else ("grown",)
    heads = ["network", "input", "batch", "estimate", *measured, f"{measured[0]} / estimate"]
    lines = [
        f"# Memory of training steps, {report.today()}",
        "",
        *report.header(device),
        "",
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
    ]
    failed = False
    for index, (candidate, batch) in enumerate(ROWS[device]):
        memory = estimate_memory(candidate, batch)
        estimate = memory.total - memory.context
        if device == "cpu":
            estimate = memory.weights + int(memory.step / MIXED)
        found = run_row(index, device, graphs=graphs)
        sides = " x ".join(map(str, candidate.sides)) + (", twice" if candidate.overrides == TWICE else "")
        row = [candidate.name, sides, str(batch), show_size(estimate)]
        if "failed" in found:
            row += [*["failed"] * len(measured), "-"]
            failed = True
        else:
            share = found[measured[0]] / estimate
            row += [*(show_size(found[key]) for key in measured), f"{share:.2f}"]
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n", failed


if __name__ == "__main__":
    sys.exit(main())
