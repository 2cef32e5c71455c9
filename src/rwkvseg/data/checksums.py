"""By which a run and a fingerprint know again the data that they saw."""

import hashlib
from pathlib import Path

from rwkvseg.data.files import CaseFiles


def file_checksums(case: CaseFiles, root: Path) -> dict[str, str]:
    """SHA-256 of every file of a case, by its path below `root`."""
    paths = [*case.images, *([case.label] if case.label else []), *case.joined]
    return {_below(path, root): _sha256(path) for path in paths}


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
