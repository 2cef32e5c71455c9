"""Every value that a study of the papers may take, as overrides of a small network."""

from typing import Any

import torch
from torch import Tensor, nn

from rwkvseg.models import create_model

SMALL = {"depths": (1, 2, 2, 2), "widths": (6, 10, 12, 14), "stem_width": 5}

STUDIES: dict[str, dict[str, Any]] = {
    "attention": {"mixer": "attention"},
    "linear_attention": {"mixer": "linear_attention"},
    "bi_mamba": {"mixer": "bi_mamba"},
    "no_mixer": {"mixer": "none"},
    "shallow_mixer": {"shallow_mixer": True},
    "shallow_attention": {"shallow_mixer": True, "mixer": "attention"},
    "channel_mix": {"channel_mix": True},
    "no_local_conv": {"local_conv": False},
    "paper": {"arch": "paper"},
    "paper_all": {"arch": "paper", "channel_mix": True, "local_conv": False, "shallow_mixer": True},
    "paper_mamba": {"arch": "paper", "mixer": "bi_mamba"},
    **{f"kernel_{k}": {"decoder_kernel": k} for k in (3, 5, 7, 11)},
    "reduced": {"decoder": "reduced"},
    "reduced_3": {"decoder": "reduced", "decoder_kernel": 3},
    "plain_3": {"decoder": "plain", "decoder_kernel": 3},
    "no_skips": {"skips": 0},
    **{f"skips_{n}": {"skips": n} for n in (1, 2)},
    **{f"skips_{n}_no_ccm": {"skips": n, "ccm": False} for n in (1, 2, 3)},
    **{f"skips_{n}_retained": {"skips": n, "ccm_inputs": "retained"} for n in (1, 2, 3)},
    **{f"ccm_rate_{n}": {"ccm_rate": n} for n in (1, 3, 4)},
    "everything": {
        "arch": "paper",
        "mixer": "linear_attention",
        "shallow_mixer": True,
        "channel_mix": True,
        "decoder": "reduced",
        "decoder_kernel": 5,
        "skips": 2,
        "ccm_inputs": "retained",
        "ccm_rate": 3,
    },
}


FEW_BLOCKS = (1, 2, 1, 2)
"""Of every kind one, a mixer in a shallow stage too; for what takes long with each further block."""


def build_study(study: str, *, num_classes: int = 2, seed: int = 0, **changes: Any) -> nn.Module:
    """Small network of a study and further overrides, with random decays where it has some."""
    torch.manual_seed(seed)
    overrides = {**SMALL, **STUDIES[study], **changes}
    return with_random_decays(create_model("rwkv_unet_tiny", num_classes=num_classes, **overrides))


def without_repeats(model: nn.Module, *, stages: tuple[int, ...]) -> nn.Module:
    """The network with its last decoder block and these stages (of 0 to 3); the others are 1x1 convolutions.

    For exports, which take long with each part: those left out shall be of the same kinds.
    """
    for number, stage in enumerate(model.encoder.stages):
        if number not in stages:
            model.encoder.stages[number] = _one_by_one(stage, stride=2)
    for number, block in enumerate(model.decoder.blocks[:-1]):
        model.decoder.blocks[number] = _one_by_one(block)
    return model


def _one_by_one(block: nn.Module, stride: int = 1) -> nn.Module:
    first, *_, last = (part for part in block.modules() if isinstance(part, nn.Conv2d))
    return nn.Conv2d(first.in_channels, last.out_channels, 1, stride=stride)


def with_random_decays(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("decay", "bonus")):  # they start at zero, where little depends on them
                parameter.normal_(std=3)
    return model


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
