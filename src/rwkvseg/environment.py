"""Software and machine behind a result."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("rwkvseg", "torch", "lightning", "monai", "numpy", "scipy", "nibabel", "pillow", "edt")


def describe_software() -> dict[str, Any]:
    """Versions, processor cores and, in a source checkout, the commit."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor_cores": os.cpu_count(),
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
