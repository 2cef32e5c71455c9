"""Every test of this folder runs on poisoned memory: what an operator forgets to write is NaN."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    memory: Any = torch.utils.deterministic  # its property is not in the type stubs
    fill, deterministic = memory.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    assert torch.ones(3).new_empty(3).isnan().all()
    assert torch.empty_like(torch.ones(3)).isnan().all()
    yield
    torch.use_deterministic_algorithms(deterministic)
    memory.fill_uninitialized_memory = fill
