"""A small U-RWKV (3D) and volumes for it; every value that an option may take."""

from typing import Any

import torch
from study_cases import with_random_decays
from torch import Tensor

from rwkvseg.models import URWKV3d, create_model

SMALL: dict[str, Any] = {"widths": (4, 6, 8, 14, 12), "depths": (1, 1, 2, 1)}

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "softmax_channel": {"fusion": "softmax_channel"},
    "free": {"fusion": "free"},
    "sum": {"fusion": "sum"},
    "two_scans": {"scans": 2},
    "one_scan": {"scans": 1},
    "named_scans": {"scans": ["wdh", "dhw"]},
    "shared_decay": {"shared_decay": True},
    "no_shift": {"shift": 0},
    "shift_2": {"shift": 2},
    "shift_replicate": {"shift_pad": "replicate", "gamma": 1 / 8},
    "no_mixer": {"mixer": "none"},
    "bi_mamba": {"mixer": "bi_mamba"},
    "uniform": {"init": "uniform"},
    "zeros": {"init": "zeros"},
    "stem_dw": {"stem": "dw"},
    "layer_scale": {"layer_scale": 0.01},
    "rate_2": {"rate": 2},
    "level_1_mixes": {"mixing_levels": [1, 2, 3, 4]},
    "anisotropic": {
        "strides": [[2, 2, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        "kernels": [[3, 3, 1], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    },
    "no_supervision": {"deep_supervision": False},
}


def small_network(seed: int = 0, **overrides: Any) -> URWKV3d:
    """In training mode, with random decays, 3 classes."""
    torch.manual_seed(seed)
    network = create_model("urwkv3d_tiny", in_channels=1, num_classes=3, **{**SMALL, **overrides})
    assert isinstance(network, URWKV3d)
    with_random_decays(network)
    return network


def volumes(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
