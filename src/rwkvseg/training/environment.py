"""What a run must remember of the machine and of the data it saw."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from rwkvseg.data.checksums import file_checksums
from rwkvseg.data.files import CaseFiles
from rwkvseg.data.splits import Split
from rwkvseg.environment import describe_software


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, processor, accelerator and, in a source checkout, the commit."""
    cuda = device.type == "cuda"
    return describe_software() | {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "threads": torch.get_num_threads(),
    }


def list_cases(
    files: Sequence[CaseFiles],
    split: Split,
    root: Path,
    *,
    known: Mapping[str, dict[str, str]] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """One entry a case of the split: id, part, and SHA-256 of every file by its path below `root`.

    `known`: checksums by case id that need not be taken again.
    """
    by_id = {case.id: case for case in files}
    return [
        {"id": case, "part": part, "sha256": known.get(case) or file_checksums(by_id[case], root)}
        for case, part in split.part_of.items()
    ]
