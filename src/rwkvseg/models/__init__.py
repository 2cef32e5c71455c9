"""Networks by name: every one maps images (B, C, H, W) to logits (B, num_classes, H, W)."""

from rwkvseg.models import baselines  # noqa: F401 - enters its models into the registry
from rwkvseg.models.config import RWKVUNetConfig
from rwkvseg.models.registry import create_model, list_models, register_model
from rwkvseg.models.rwkv_unet import RWKVUNet

__all__ = ["RWKVUNet", "RWKVUNetConfig", "create_model", "list_models", "register_model"]
