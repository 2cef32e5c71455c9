"""Networks by name: `@register_model` enters a factory, `create_model` builds, `list_models` lists."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from rwkvseg.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)

Factory = TypeVar("Factory", bound=Callable[..., nn.Module])

_FACTORIES: dict[str, Callable[..., nn.Module]] = {}


def register_model(factory: Factory) -> Factory:
    """Enter `factory` into the registry under its own name and return it unchanged.

    The factory takes `in_channels`, `num_classes` and further overrides as keywords. It returns a module that
    maps (B, in_channels, H, W) to logits (B, num_classes, H, W) for any H, W >= 1.

    Raises:
        UsageError: the name is taken.
    """
    name = factory.__name__
    if name in _FACTORIES:
        raise UsageError(f"a model named {name!r} is already registered. Give the new factory another name.")
    _FACTORIES[name] = factory
    return factory


def list_models() -> list[str]:
    """Names that `create_model` knows, sorted; nothing is built or imported for it.

    >>> "rwkv_unet_tiny" in list_models()
    True
    """
    return sorted(_FACTORIES)


def create_model(
    name: str,
    *,
    in_channels: int = 3,
    num_classes: int = 1,
    encoder_weights: str | Path | None = None,
    features_only: bool = False,
    **overrides: Any,
) -> nn.Module:
    """Build a registered network with fresh weights, in training mode.

    Args:
        name: one of `list_models()`.
        in_channels: channels of the images.
        num_classes: channels of the logits; 1 means foreground against background.
        encoder_weights: file to take the encoder's weights from, see `encoder_files.load_encoder`.
        features_only: give the encoder alone, see `features.EncoderFeatures`; num_classes then has no effect.
        overrides: fields of the model's config to change, such as `drop_path_rate=0.0`.

    Returns:
        A module that maps (B, in_channels, H, W) to logits (B, num_classes, H, W).

    Raises:
        UsageError: unknown name, unknown override or a value that the config refuses.
        ModelFileError: `encoder_weights` is missing, damaged or for another encoder.

    >>> sum(p.numel() for p in create_model("rwkv_unet_tiny").parameters())
    3145761
    """
    if name not in _FACTORIES:
        raise UsageError(f"there is no model named {name!r}. Choose one of {', '.join(list_models())}.")
    network = _FACTORIES[name](in_channels=in_channels, num_classes=num_classes, **overrides)
    if encoder_weights is not None:
        from rwkvseg.models.encoder_files import load_encoder  # these two know the networks, which know us

        load_encoder(network, Path(encoder_weights))
    if features_only:
        from rwkvseg.models.features import EncoderFeatures

        return EncoderFeatures(network)
    return network


def override_config(config: "Config", overrides: Mapping[str, Any]) -> "Config":
    """Copy of the dataclass `config` with the fields in `overrides` changed.

    Raises:
        UsageError: a name that is no field of the config, or a value that the config refuses.
    """
    known = [field.name for field in fields(config)]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise UsageError(
            f"{type(config).__name__} has no field {', '.join(map(repr, unknown))}. "
            f"The fields are {', '.join(known)}."
        )
    return replace(config, **overrides)
