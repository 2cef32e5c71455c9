"""Fetch an archive of a public data set: on request only, resumed where it stopped, checked, unpacked."""

import hashlib
import shutil
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError

from rwkvseg.errors import DataError, OutputError
from rwkvseg.memory import show_size

OnBytes = Callable[[float, float | None], None]
_BLOCK = 1 << 20
_PATIENCE = 60  # seconds without a byte


@dataclass(frozen=True, slots=True)
class Download:
    """An open link of the data's owners."""

    url: str
    checksum: str
    """Of the archive, "algorithm:hexadecimal"."""
    folder: str
    """What the archive holds: its single folder."""


def fetch(link: Download, out: Path, on_bytes: OnBytes = lambda _done, _total: None) -> Path:
    """Download and unpack an archive; returns `out / link.folder`.

    What has come stays in `out` under the archive's name and ".part" when the connection breaks or the
    program is stopped; the same call goes on from there. The archive is removed when it is unpacked.

    Args:
        link: where it lies.
        out: folder for the data, made when missing.
        on_bytes: called with (bytes so far, all bytes or None) as they come.

    Raises:
        DataError: the folder is there already, no connection, a broken one, a wrong checksum, or an archive
            that does not hold what it should.
        OutputError: the disk refuses, or has not the space to unpack it.
    """
    target = out / link.folder
    if target.exists():
        raise DataError(f"{target} is there already. Remove it to fetch it again, or choose another --out.")
    archive = out / link.url.rpartition("/")[2]
    part = archive.with_name(archive.name + ".part")
    with _disk(out):
        out.mkdir(parents=True, exist_ok=True)
        _receive(link.url, part, on_bytes)
        _check(part, link)
        _unpack(part, target, archive.name)
        part.unlink()
    return target


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}. Free some space.") from error


def _receive(url: str, part: Path, on_bytes: OnBytes) -> None:
    """Append to what is there what is missing; whole when the server says so."""
    have = part.stat().st_size if part.is_file() else 0
    try:
        with _opened(url, have) as response:
            # a server that knows no ranges sends everything again
            have = have if response.status == 206 else 0
            length = response.headers.get("Content-Length")
            total = have + int(length) if length and length.isdigit() else None
            with part.open("ab" if have else "wb") as file:
                while block := _block(response):
                    file.write(block)
                    have += len(block)
                    on_bytes(have, total)
    except HTTPError as error:
        if error.code == 416:  # nothing is missing
            return
        raise DataError(
            f"{url} answers {error.code} {error.reason}. Try later, or see its owners' page."
        ) from error
    except _Broken as error:
        raise _broken(url, part, str(error)) from error
    if total is not None and have < total:
        raise _broken(url, part, f"{show_size(have)} of {show_size(total)} came")


class _Broken(Exception):
    """The connection, not the disk."""


def _block(response: HTTPResponse) -> bytes:
    try:
        return response.read(_BLOCK)
    except (OSError, HTTPException) as error:
        raise _Broken(str(error) or type(error).__name__) from error


def _opened(url: str, have: int) -> HTTPResponse:
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=_PATIENCE)
    except HTTPError:
        raise
    except (OSError, HTTPException) as error:
        raise _Broken(str(getattr(error, "reason", error))) from error
    return response


def _broken(url: str, part: Path, told: str) -> DataError:
    kept = f"; what came is kept in {part.name}" if part.is_file() else ""
    return DataError(f"the connection to {url} failed: {told}{kept}. Give the same command again to go on.")


def _check(part: Path, link: Download) -> None:
    algorithm, _, wanted = link.checksum.partition(":")
    with part.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != wanted:
        part.unlink()
        raise DataError(
            f"{link.url} has the {algorithm} {found}, not {wanted}: it was damaged on the way, or replaced. "
            "It was removed; give the same command again, or look at the owners' page."
        )


def _unpack(part: Path, target: Path, name: str) -> None:
    """Unpack beside the target, then rename: whole or not at all."""
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        (_unpack_zip if name.endswith(".zip") else _unpack_tar)(part, aside)
        if not (aside / target.name).is_dir():
            raise DataError(
                f"the archive {name} does not hold a folder {target.name}. Unpack {part} yourself."
            )
        (aside / target.name).rename(target)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, RuntimeError, zlib.error) as error:
        raise DataError(f"cannot unpack {part}: {error}. Look at the owners' page.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _unpack_tar(part: Path, folder: Path) -> None:
    with tarfile.open(part) as archive:
        members = archive.getmembers()
        _require_space(folder.parent, sum(member.size for member in members))
        archive.extractall(folder, members, filter="data")  # nothing outside the folder, no devices


def _unpack_zip(part: Path, folder: Path) -> None:
    with zipfile.ZipFile(part) as archive:
        _require_space(folder.parent, sum(member.file_size for member in archive.infolist()))
        archive.extractall(folder)  # which keeps names inside the folder


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"unpacked, the data takes {show_size(needed)}, {folder} has {show_size(free)} left. "
            "Free some space."
        )
