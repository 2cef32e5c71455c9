"""Weights in files, ours and others': a pickle is never executed, and what is wrong is said in words."""

import argparse
import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rwkvseg.errors import ModelFileError, one_line

# what torch's unpickler raises at bytes that are no checkpoint
DAMAGE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    struct.error,
    pickle.UnpicklingError,
)
_WRAPPERS = ("state_dict", "model")  # where training programs keep the weights in a checkpoint


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read name -> tensor, on the CPU, of a safetensors file or of a file that torch.save wrote.

    A checkpoint that keeps its weights under `state_dict` or `model` is unwrapped. Pickles are read with
    weights_only=True: nothing in them runs, and whatever is more than tensors, plain values and parsed
    arguments is refused.

    Raises:
        ModelFileError: missing, truncated, damaged, or no weights.
    """
    if not path.is_file():
        raise ModelFileError(f"there is no weights file {path}. Check the path.")
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise ModelFileError(
            f"{path} holds {_kind(content)}, no weights by name. Give a state dict as torch.save writes it."
        )
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ModelFileError(
                f"entry {name} of {path} is {_kind(value)}, not a tensor. "
                "Give the state dict itself, or a checkpoint that has it under 'state_dict' or 'model'."
            )
    return {str(name): value.detach() for name, value in content.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file; empty for other files and where there is none.

    Raises:
        ModelFileError: it cannot be read.
    """
    if path.suffix.lower() != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is truncated or no safetensors file: {one_line(error, 120)}. Copy it again."
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is truncated or no safetensors file: {one_line(error, 120)}. Copy it again."
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        # timm keeps its parsed arguments beside the weights: a plain record, which runs nothing
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # torch warns of foreign pickles, which are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            raise ModelFileError(
                f"{path} is a pickle of more than weights, which could run any code and so is not opened. "
                f"Save its state dict alone: {one_line(error, 120)}"
            ) from error
        raise ModelFileError(
            f"{path} is truncated or no file of torch.save: {one_line(error, 120)}. Download it again."
        ) from error


def _kind(value: object) -> str:
    return "an empty mapping" if isinstance(value, Mapping) and not value else f"a {type(value).__name__}"
