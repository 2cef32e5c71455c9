"""Fixtures for the networks: golden facts about the published RWKV-UNet."""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Golden:
    """What ../shared/golden says: published names and shapes, weights made from names, logits of tiny."""

    folder: Path
    fill: Callable[[str, tuple[int, ...]], Any]
    image: Callable[[tuple[int, ...]], Any]

    def state_dict(self, variant: str, generation: str, num_classes: int = 9) -> dict[str, Tensor]:
        names = json.loads((self.folder / f"published_keys_{variant}.json").read_text())[generation]
        shapes = {
            name: (num_classes, *shape[1:]) if name.startswith("final_conv") else tuple(shape)
            for name, shape in names.items()
        }
        return {name: torch.from_numpy(self.fill(name, shape)) for name, shape in shapes.items()}

    def logits(self) -> dict[str, dict[str, Any]]:
        return dict(json.loads((self.folder / "published_logits_tiny.json").read_text()))


@pytest.fixture(scope="session")
def golden() -> Golden:
    data = Path(os.environ.get("RWKVSEG_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    folder = data.parent / "golden"
    if not folder.is_dir():
        pytest.skip("the golden facts are absent: they lie in golden/ beside the folder RWKVSEG_SHARED_DATA")
    spec = importlib.util.spec_from_file_location("synthetic_weights", folder / "synthetic_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Golden(folder, module.fill, module.image)
