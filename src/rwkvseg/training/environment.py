"""What a run must remember of the machine and of the data it saw."""

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rwkvseg.data.checksums import file_checksums
from rwkvseg.data.layouts import CaseFiles
from rwkvseg.data.splits import Split

PACKAGES = ("rwkvseg", "torch", "lightning", "monai", "numpy", "scipy", "nibabel", "pillow")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, processor, accelerator and, in a source checkout, the commit."""
    cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor_cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": source_commit(),
    }


def source_commit() -> str | None:
    """Commit of the checkout this package runs from, "+changes" added where files differ; else None."""
    override = os.environ.get("RWKVSEG_COMMIT")  # for copies of a checkout that travel without their history
    if override:
        return override
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def list_cases(files: Sequence[CaseFiles], split: Split, root: Path) -> list[dict[str, Any]]:
    """One entry a case of the split: id, part, and SHA-256 of every file by its path below `root`."""
    by_id = {case.id: case for case in files}
    entries = []
    for part in ("train", "val", "test"):
        for case_id in getattr(split, part):
            entries.append({"id": case_id, "part": part, "sha256": file_checksums(by_id[case_id], root)})
    return entries
