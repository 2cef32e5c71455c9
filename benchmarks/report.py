"""Where a figure comes from, and how it reaches the disk: shared by the scripts of this folder."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from rwkvseg.output import write_text


def hardware(device: str) -> str:
    """Name of the GPU, or of the processor with its number of cores."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()}"


def header(device: str) -> list[str]:
    """Return lines that say on what, with what and how a table was made."""
    return [
        f"- hardware: {hardware(device)}",
        f"- torch {torch.__version__}, triton {_version('triton')}, Python {platform.python_version()}",
        f"- commit: {_commit()}",
        f"- command: `{command()}`",
    ]


def load() -> str:
    """Say how busy the machine has been; other work on it spoils a time."""
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return f"load of the machine over 1, 5, 15 minutes at the end: {loads}"


def command() -> str:
    """Return the command line without the paths of this machine."""
    words = [Path(word).name if word.startswith(("/", "~", "..")) else word for word in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def save(path: Path, name: str, device: str, text: str) -> None:
    """Write text to path, or into it as <date>_<hardware>_<name>.md where it is no .md file."""
    if path.suffix != ".md":
        machine = (
            hardware(device).replace(" ", "-")
            if device == "cuda"
            else f"{platform.machine()}-{os.cpu_count()}cores"
        )
        path /= f"{today()}_{machine}_{name}.md"
    write_text(path, text)
    print(f"written to {path}")


def today() -> str:
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _commit() -> str:
    """Return RWKVSEG_COMMIT, or what git says; a copy of the files alone knows neither."""
    given = os.environ.get("RWKVSEG_COMMIT")
    if given:
        return given
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
