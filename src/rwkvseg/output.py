"""The one way results reach the disk: under a temporary name, then renamed, so nothing is half-written."""

import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from rwkvseg.errors import OutputError, UsageError


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on any failure removed.

    It keeps the suffixes of `path`, since writers choose their format by them. Parent folders are made. What
    a killed process of this machine left in the folder under such names is removed.

    Raises:
        OutputError: the folder cannot be made or the file cannot be written (full disk, no permission,
            a regular file where a folder should be).
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent.absolute())
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. "
            "Free some space or choose another output path. A training then goes on with --resume, other "
            "commands begin again."
        ) from error
    finally:
        _remove_quietly(temporary)


def require_writable(folder: Path) -> None:
    """Raise OutputError where no file could be written into a folder, which need not be there yet."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "may not be written" if place.is_dir() else "is a file"
        raise OutputError(f"cannot write into {folder}: {place} {why}. Choose another output path.")


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; on success it takes its place, on any failure it goes.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = _temporary(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent.absolute())
        temporary.mkdir()
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}. "
            "Free some space or choose another output path. A training then goes on with --resume, other "
            "commands begin again."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine that would hold a folder, too, out of it meanwhile.

    Those of other machines cannot be asked whether they are still there, nor can any on Windows.

    Raises:
        UsageError: another process holds it.
    """
    ours = folder / f".{_machine()}.{os.getpid()}.holds"
    named = re.compile(rf"\.{_machine()}\.([1-9]\d*)\.holds")
    write_bytes(ours, b"")
    try:
        for found in folder.iterdir():
            match = named.fullmatch(found.name)
            if match is None or found == ours:
                continue
            if os.name == "posix" and _is_alive(int(match[1])):
                raise UsageError(
                    f"process {match[1]} is at work in {folder}. Wait for its end, or choose another --out."
                )
            _remove_quietly(found)
        yield
    finally:
        _remove_quietly(ours)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{_machine()}.{os.getpid()}.partial.{path.name}")


def _remove_quietly(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the parent is not a folder: then there is nothing to remove
        return


@cache
def _machine() -> str:
    """Eight digits that tell machines apart: a process id means nothing on another one's disk."""
    return sha256(platform.node().encode()).hexdigest()[:8]


@cache  # once a folder: thousands of predictions go into one, and its list is read each time
def _sweep(folder: Path) -> None:
    """Remove the temporary files of processes of this machine that are no more."""
    named = re.compile(rf"\.{_machine()}\.([1-9]\d*)\.partial\..+", re.DOTALL)
    for left in folder.iterdir():
        match = named.fullmatch(left.name)
        if match and not _is_alive(int(match[1])):
            _remove_quietly(left)


def _is_alive(process: int) -> bool:
    """Whether a process may still be there; True where that cannot be told."""
    if os.name != "posix":  # elsewhere signal 0 is no question: it would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


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
