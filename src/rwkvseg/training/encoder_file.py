"""A pre-trained encoder on disk: one safetensors file with its weights and what they belong to."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_safetensors

from rwkvseg.models.rwkv_unet import Encoder, RWKVUNetConfig
from rwkvseg.output import write_bytes

KIND = "rwkvseg-encoder"


def save_encoder(
    path: Path, encoder: Encoder, *, model: str, config: RWKVUNetConfig, protocol: dict[str, Any]
) -> None:
    """Write the state dict of `encoder` under its own keys, whole or not at all.

    Args:
        path: the .safetensors file.
        encoder: whose weights are kept.
        model: name in the registry of the network that it was taken from.
        config: of that network.
        protocol: how it was trained; JSON values.

    Raises:
        OutputError: the file cannot be written.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    metadata = {"kind": KIND, "model": model}
    metadata |= {"config": json.dumps(asdict(config)), "protocol": json.dumps(protocol)}
    write_bytes(path, save_safetensors(state, metadata))
