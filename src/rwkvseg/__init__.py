"""Medical image segmentation with linear-time global context.

The public names load on first use, so `import rwkvseg` compiles nothing and loads no training framework.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("rwkvseg")

_HOME = {
    "Case": "rwkvseg.data.case",
    "Predictor": "rwkvseg.inference.predictor",
    "RWKVSegError": "rwkvseg.errors",
    "RWKVUNet": "rwkvseg.models.rwkv_unet",
    "RWKVUNetConfig": "rwkvseg.models.rwkv_unet",
    "Recipe": "rwkvseg.training.recipe",
    "bi_wkv": "rwkvseg.ops.wkv",
    "create_model": "rwkvseg.models.registry",
    "evaluate": "rwkvseg.inference.evaluate",
    "list_models": "rwkvseg.models.registry",
    "register_model": "rwkvseg.models.registry",
    "train": "rwkvseg.training.run",
}

__all__ = [
    "Case",
    "Predictor",
    "RWKVSegError",
    "RWKVUNet",
    "RWKVUNetConfig",
    "Recipe",
    "__version__",
    "bi_wkv",
    "create_model",
    "evaluate",
    "list_models",
    "register_model",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rwkvseg' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
