"""Files in the layout of the authors' published weights, made from networks of ours."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwkvseg.models.published import _names, convert_state_dict


def published_layout(network: nn.Module) -> dict[str, Tensor]:
    """State dict of a published variant of ours under the authors' names, with mixing shares as (1, 1, C)."""
    ours = network.state_dict()
    depths = [len(stage) for stage in network.encoder.stages]  # type: ignore[union-attr, arg-type]
    blocks = [
        "encoder.stage0.0",
        *(f"encoder.stage{s}.{i}" for s, d in enumerate(depths, 1) for i in range(d)),
    ]
    names = _names(dict.fromkeys(f"{block}.conv.conv.weight" for block in blocks))
    shaped = {
        theirs: ours[name].view(1, 1, -1) if "spatial_mix" in theirs else ours[name]
        for theirs, name in names.items()
        if name
    }
    assert convert_state_dict(shaped).keys() == ours.keys()
    return shaped


def encoder_alone(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the authors' ImageNet classifier holds: the encoder without prefix, its last norm and head."""
    encoder = {n.removeprefix("encoder."): v for n, v in published.items() if n.startswith("encoder.")}
    return encoder | {"norm.norm.weight": torch.ones(160), "head.weight": torch.zeros(1000, 160)}


def saved(path: Path, content: Any) -> Path:
    """Write `content` as the authors do, and return the path."""
    torch.save(content, path)
    return path
