"""Encoder weights: the file that pre-training writes, and every file that a training may start from.

Our file is safetensors with the names of `Encoder.state_dict()` and the metadata kind "rwkvseg-encoder",
model (a registered name) and config (JSON).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from rwkvseg.errors import ModelFileError, UsageError
from rwkvseg.models.published import check_fit, convert_encoder, variant_of
from rwkvseg.models.weight_files import read_metadata, read_state_dict
from rwkvseg.output import write_bytes

ENCODER_FILE = "encoder.safetensors"
KIND = "rwkvseg-encoder"
_IN_A_FOLDER = (ENCODER_FILE, "model.safetensors", "model/model.safetensors")
_FIRST = "stem.expand.conv.weight"  # its columns are the channels of the images


def save_encoder(
    path: Path,
    state_dict: Mapping[str, Tensor],
    *,
    model: str,
    config: Any,
    licence: str = "not stated",
    protocol: Mapping[str, Any] | None = None,
) -> None:
    """Write the weights of an `Encoder`, which `create_model(model, encoder_weights=path)` starts from.

    Args:
        path: ends in .safetensors.
        state_dict: that of the encoder, without prefix.
        model: registered name of a network with such an encoder.
        config: what JSON can hold: the fields of the network's config.
        licence: of the weights, or of the data that trained them.
        protocol: how they were trained; JSON values.

    Raises:
        OutputError: it cannot be written.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in state_dict.items()}
    metadata = {"kind": KIND, "model": model, "config": json.dumps(config), "licence": licence}
    if protocol is not None:
        metadata["protocol"] = json.dumps(protocol)
    write_bytes(path, save_safetensors(tensors, metadata))


def load_encoder(network: nn.Module, path: Path) -> None:
    """Load the encoder of `network` from a file, all of it or nothing; the rest of the network stays.

    Takes our encoder file; a model or run folder of ours, or its weights; the authors' encoder-only files and
    segmentation checkpoints. Weights for 3 channels fit a network for n others: see `fit_stem`.

    Raises:
        UsageError: the network has no encoder.
        ModelFileError: the file is missing, damaged, or for another encoder; what differs is named.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise UsageError(
            f"{type(network).__name__} has no encoder that weights could be loaded into. "
            "Drop encoder_weights, or choose an rwkv_unet."
        )
    file = _find(path)
    state, expected = _encoder_entries(read_state_dict(file)), encoder.state_dict()
    found, wanted = (variant_of(entries, prefix="") for entries in (state, expected))
    if found is not None and wanted is not None and found != wanted:
        raise ModelFileError(
            f"{file} holds the encoder of {found}, the network is {wanted}. Choose the network {found}."
        )
    if _FIRST in state and _FIRST in expected:
        state = fit_stem(state, expected[_FIRST].shape[1])
    try:
        check_fit(state, expected)
    except ModelFileError as error:
        raise ModelFileError(f"{file}: {error}") from error
    encoder.load_state_dict(state, strict=True)


def describe_encoder(path: Path) -> dict[str, str]:
    """Where weights come from, for the record of a run: file, SHA-256 and licence.

    Raises:
        ModelFileError: no such file.
    """
    file = _find(path)
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelFileError(f"there is no weights file {file}. Check the path.") from error
    return {"file": file.name, "sha256": digest, "licence": _licence(file)}


def _licence(file: Path) -> str:
    if file.name == "model.safetensors":  # of a model folder of ours, which says it beside the weights
        description = file.with_name("model.json")
        content = json.loads(description.read_text(encoding="utf-8")) if description.is_file() else {}
        return str(content.get("licence", "not stated"))
    return read_metadata(file).get("licence", "not stated")


def fit_stem(state: Mapping[str, Tensor], in_channels: int) -> dict[str, Tensor]:
    """Make an encoder's stem for 3 channels one for `in_channels` images that need not be colours.

    Every image channel gets the mean of the three colours' weights, scaled so that their sum stays; the
    stem's inner channels are repeated in turn, and what reads them is divided by how often each stands there.
    Where all channels show the same picture, the maps are those of that picture in grey: nothing is lost.

    Args:
        state: entries of an `Encoder`.
        in_channels: columns of the stem that is wanted.

    Returns:
        The entries, those of the stem replaced; as they are where the numbers agree, or `state` has no 3.
    """
    have = state[_FIRST].shape[1]
    inner = max(in_channels, 3)
    if have != 3 or in_channels == have:
        return dict(state)
    source = torch.arange(inner) % 3  # which old inner channel a new one repeats
    share = 1 / source.bincount()[source].float()
    fitted = dict(state)
    for name, value in state.items():
        if not name.startswith("stem.") or value.ndim == 0:
            continue
        if name == _FIRST:
            fitted[name] = (
                value[source].mean(1, keepdim=True).mul(3 / in_channels).repeat(1, in_channels, 1, 1)
            )
        elif name == "stem.project.weight":
            fitted[name] = value[:, source] * share.view(-1, 1, 1)
        elif name in ("stem.squeeze_excite.reduce.weight", "stem.squeeze_excite.expand.weight"):
            fitted[name] = value[source][:, source] * share.view(-1, 1, 1)
        else:  # norms, biases and the depthwise convolution: one entry for each inner channel
            fitted[name] = value[source]
    return fitted


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in _IN_A_FOLDER if (path / name).is_file()]
    if not found:
        raise ModelFileError(
            f"{path} holds none of {', '.join(_IN_A_FOLDER)}. Give an encoder file, or a run or model folder."
        )
    return found[0]


def _encoder_entries(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries by the names of `Encoder`, whoever wrote the file."""
    if any(name.startswith(("stem.", "stages.")) for name in state):
        return dict(state)
    if any(name.startswith(("encoder.stem.", "encoder.stages.")) for name in state):
        return {n.removeprefix("encoder."): value for n, value in state.items() if n.startswith("encoder.")}
    return convert_encoder(state)
