"""Networks for figures, by label: trained ones from their folders, or fresh ones by name and overrides."""

from collections.abc import Iterable
from pathlib import Path

import torch
import yaml
from torch import nn

from rwkvseg.errors import UsageError
from rwkvseg.inference.model_file import load_model
from rwkvseg.models.registry import create_model, list_models


def named_networks(texts: Iterable[str], device: torch.device, *, seed: int = 0) -> dict[str, nn.Module]:
    """Label -> network in evaluation mode on the device, in the order given.

    Args:
        texts: each "[LABEL=]SOURCE", where SOURCE is a run or model folder, or the name of a registered
            network with overrides: "NAME" or "NAME:key=value;key=value", values in YAML.
        device: where they go.
        seed: of fresh weights.

    Raises:
        UsageError: two networks of one label, or an override without value.
        ModelFileError: neither a registered name nor a model.
    """
    networks: dict[str, nn.Module] = {}
    for text in texts:
        label, source = _split(text)
        if label in networks:
            raise UsageError(f"two networks are called {label!r}. Give one another label: LABEL=SOURCE.")
        networks[label] = _build(source, seed).to(device).eval()
    return networks


def _split(text: str) -> tuple[str, str]:
    label, equals, source = text.partition("=")
    if equals and source and not any(mark in label for mark in ":;/"):
        return label, source
    return (Path(text).name if ":" not in text else text), text


def _build(source: str, seed: int) -> nn.Module:
    name, _, changes = source.partition(":")
    if name not in list_models():
        return load_model(Path(source))[0]
    overrides = {}
    for change in filter(None, changes.split(";")):
        key, equals, value = change.partition("=")
        if not equals:
            raise UsageError(f"override {change!r} of {name} has no value. Write it as key=value.")
        overrides[key.strip()] = yaml.safe_load(value)
    torch.manual_seed(seed)
    return create_model(name, **overrides)
