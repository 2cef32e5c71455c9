"""Training with a fixed encoder: neither its weights nor its batch statistics change."""

from torch import nn

from rwkvseg.errors import RecipeError


def freeze_encoder(network: nn.Module) -> None:
    """Keep weights and batch statistics of the encoder as they are: no gradients, evaluation mode.

    Raises:
        RecipeError: the network has no encoder.
    """
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise RecipeError(
            f"model.freeze_encoder is set, but {type(network).__name__} has no encoder. Choose an rwkv_unet."
        )
    encoder.requires_grad_(False).eval()


def keep_frozen(network: nn.Module) -> None:
    """Put parts without any trainable weight back into evaluation mode, whatever mode the network is in."""
    for part in network.children():
        weights = list(part.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            part.eval()
