"""Runs the scripts of this folder that compile kernels for a GPU which need not be there."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


def lines_of(script: str, *arguments: str, **environment: str) -> list[str]:
    """Return what a script beside this file prints; skip where Triton has no assembler to run."""
    found = find_spec("triton")
    if found is None or found.origin is None:
        pytest.skip("the package triton is not installed")
    if not (Path(found.origin).parent / "backends" / "nvidia" / "bin" / "ptxas").exists():
        pytest.skip("this triton has no ptxas")
    command = [sys.executable, Path(__file__).parent / script, *arguments]
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def few_or_all() -> dict[str, str]:
    """Return the environment in which scripts compile some kernels, unless all are asked for."""
    return {} if "RWKVSEG_READ_ALL" in os.environ else {"RWKVSEG_COMPILE_FEW": "1"}
