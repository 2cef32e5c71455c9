"""The one way results reach the disk: under a temporary name, then renamed, so nothing is half-written."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rwkvseg.errors import OutputError


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on any failure removed.

    It keeps the suffixes of `path`, since writers choose their format by them. Parent folders are made.

    Raises:
        OutputError: the folder cannot be made or the file cannot be written (full disk, no permission,
            a regular file where a folder should be).
    """
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. "
            "Free some space or choose another output path, then run the same command again."
        ) from error
    finally:
        _remove_quietly(temporary)


def _remove_quietly(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the parent is not a folder: then there is nothing to remove
        return


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON; NaN and infinity, which JSON lacks, are refused (use None)."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
