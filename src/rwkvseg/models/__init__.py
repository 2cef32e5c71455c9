"""Networks by name: each maps images (B, C, H, W) or volumes (B, C, D, H, W) to logits of the same size."""

from rwkvseg.models import baselines  # noqa: F401 - enters its models into the registry
from rwkvseg.models.config import RWKVUNetConfig
from rwkvseg.models.registry import create_model, list_models, register_model
from rwkvseg.models.rwkv_unet import RWKVUNet
from rwkvseg.models.urwkv3d import URWKV3d
from rwkvseg.models.urwkv3d_config import URWKV3dConfig

__all__ = [
    "RWKVUNet",
    "RWKVUNetConfig",
    "URWKV3d",
    "URWKV3dConfig",
    "create_model",
    "list_models",
    "register_model",
]
