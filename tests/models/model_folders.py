"""A network written as a model folder and read back."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwkvseg.data.preprocessing import Preprocessing
from rwkvseg.inference.model_file import Architecture, ModelDescription, load_model, save_model


def assert_a_folder_restores(
    network: nn.Module, x: Tensor, folder: Path, *, name: str, overrides: dict[str, Any]
) -> None:
    """Two classes; what is read back gives the same bits for the images x."""
    architecture = Architecture(name=name, in_channels=x.shape[1], num_classes=2, overrides=overrides)
    description = ModelDescription(
        rwkvseg_version="0",
        architecture=architecture,
        labels={"background": 0, "organ": 1},
        preprocessing=Preprocessing(channels=x.shape[1]),
    )
    save_model(folder, network, description)
    loaded, _ = load_model(folder)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))
