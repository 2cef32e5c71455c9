"""A trained model on disk: one folder with `model.safetensors` (weights) and `model.json` (everything else).

The folder is enough to predict. No pickle is ever read; the weights carry a checksum and load strictly.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from rwkvseg.data.preprocessing import Preprocessing
from rwkvseg.errors import ModelFileError, RWKVSegError, one_line
from rwkvseg.models.registry import create_model
from rwkvseg.output import write_bytes, write_text

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
PICKLE_SUFFIXES = {".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin", ".tar"}


class Architecture(BaseModel):
    """What `create_model` needs to build the network again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    in_channels: int
    num_classes: int
    overrides: dict[str, Any] = {}


class ModelDescription(BaseModel):
    """Content of model.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["rwkvseg-model"] = "rwkvseg-model"
    format_version: Literal[1] = 1
    rwkvseg_version: str
    architecture: Architecture
    labels: dict[str, int]
    preprocessing: Preprocessing
    protocol: dict[str, Any] = {}  # recipe, split rule, checkpoint, epochs, seed
    metrics: dict[str, Any] = {}  # of the run that made it
    licence: str = "not stated"  # of the data that trained it
    weights_sha256: str = ""


def save_model(folder: Path, network: nn.Module, description: ModelDescription) -> ModelDescription:
    """Write the model folder, model.json last; returns the description with the checksum of the weights.

    Raises:
        OutputError: the folder cannot be written.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    content = save_safetensors(state)
    digest = hashlib.sha256(content).hexdigest()
    write_bytes(folder / WEIGHTS, content)
    described = description.model_copy(update={"weights_sha256": digest})
    write_description(folder, described)
    return described


def write_description(folder: Path, description: ModelDescription) -> None:
    """Write model.json of a model folder whose weights are there.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_text(folder / DESCRIPTION, description.model_dump_json(indent=2) + "\n")


def load_model(path: Path) -> tuple[nn.Module, ModelDescription]:
    """Load the network (on the CPU, evaluation mode) of a run folder, a model folder or a file in one.

    Raises:
        ModelFileError: missing, a pickle, altered, or not for the described architecture.
    """
    folder = find_model_folder(path)
    description = read_description(folder)
    state = _read_weights(folder / WEIGHTS, description.weights_sha256)
    architecture = description.architecture
    try:
        network = create_model(
            architecture.name,
            in_channels=architecture.in_channels,
            num_classes=architecture.num_classes,
            **architecture.overrides,
        )
        network.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError, RWKVSegError) as error:
        raise ModelFileError(
            f"the weights in {folder} do not fit the architecture '{architecture.name}' of its "
            f"{DESCRIPTION}: {one_line(error)}. Use the two files of one and the same model."
        ) from error
    return network.eval(), description


def find_model_folder(path: Path) -> Path:
    """Folder that holds model.json, given a run, a model folder or a file inside it."""
    if path.suffix.lower() in PICKLE_SUFFIXES and not path.is_dir():
        raise ModelFileError(
            f"{path} is a pickle, which can run any code when opened, so it is never loaded. "
            f"Give a folder with {DESCRIPTION} and {WEIGHTS}."
        )
    folder = path.parent if path.name in (WEIGHTS, DESCRIPTION) else path
    for candidate in (folder, folder / "model"):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    if not path.exists():
        raise ModelFileError(f"there is no model at {path}. Check the path.")
    raise ModelFileError(
        f"{path} is neither a run nor a model folder: it holds no {DESCRIPTION}. "
        "Give the folder that `rwkvseg train` wrote; a run that was killed must be resumed first."
    )


def read_description(folder: Path) -> ModelDescription:
    """Read and check model.json of a model folder."""
    path = folder / DESCRIPTION
    try:
        return ModelDescription.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        item = error.errors()[0]
        key = ".".join(str(part) for part in item["loc"])
        raise ModelFileError(
            f"{path} does not describe a model of this version: '{key}': {item['msg']}. "
            "Use the file as `rwkvseg train` wrote it, or the rwkvseg version that wrote it."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"cannot read {path}: {one_line(error)}. Copy the model again.") from error


def _read_weights(path: Path, digest: str) -> dict[str, torch.Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"cannot read the weights {path}: {error.strerror}. Copy the model again."
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ModelFileError(
            f"{path} was altered or belongs to another model: its SHA-256 starts with {found[:12]}, "
            f"{DESCRIPTION} says {digest[:12]}. Copy both files again from one model."
        )
    try:
        return load_safetensors(content)
    except SafetensorError as error:
        raise ModelFileError(f"{path} is not a safetensors file: {error}. Copy the model again.") from error
