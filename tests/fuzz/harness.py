"""Damage to files, and what a reader may make of it: a sound result, or an error of ours that names the file.

A new reader is one line in readers.py.
"""

import json
import resource
import signal
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from rwkvseg.errors import RWKVSegError

HEADROOM = 400 * 2**20  # bytes that reading a damaged file of some kilobytes may take beyond what is in use
FLOOD = 100 * 2**20  # bytes of Python's memory that a trap of less than a megabyte may fill
PATIENCE = 20  # seconds; a hang, not a slow machine

Layer = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]  # (unpack, pack)


@dataclass(frozen=True)
class Reader:
    """A reader and a whole file for it."""

    name: str
    file: str
    """Path of the file within its folder."""
    write: Callable[[Path], None]
    """Write the whole file, whose path is given, and whatever else the reader needs around it."""
    read: Callable[[Path], Any]
    """Read it, given its path; what reads folders takes the file's."""
    check: Callable[[Any], None] = lambda _: None
    """Assert that a result is sound."""
    layer: Layer | None = None
    """Undo and redo what would notice any damage at once: compression, checksums."""
    examples: int = 50


class Hang(BaseException):
    """Not an Exception, so that no reader takes it for damage."""


def outcome(reader: Reader, folder: Path) -> str:
    """Read, and assert that the end is one that is allowed; "read" or "refused"."""
    with _limits():
        try:
            reader.check(reader.read(folder / reader.file))
        except RWKVSegError as error:
            message = str(error)
            file = Path(reader.file)
            names = (file.name, str(folder), repr(file.parent.name))  # runs go by their folder's name
            assert any(name in message for name in names), message
            message.encode()  # what cannot be printed helps nobody
            assert len(message) < 3000, message[:200]
            return "refused"
    return "read"


def refused(path: Path, read: Callable[[Path], Any], *, watched: bool = True) -> str:
    """Message of the refusal, whose Python memory stayed below a flood; `outcome` bounds the rest."""
    reader = Reader("trap", path.name, lambda _: None, read)
    if watched:
        tracemalloc.start()
    try:
        assert outcome(reader, path.parent) == "refused"
        assert tracemalloc.get_traced_memory()[1] < FLOOD
    finally:
        tracemalloc.stop()
    with pytest.raises(RWKVSegError) as caught:
        read(path)
    return str(caught.value)


@contextmanager
def _limits() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang(f"still reading after {PATIENCE} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def damaged(reader: Reader, whole: bytes) -> st.SearchStrategy[bytes]:
    """Contents that differ from the whole file: bytes, also below the layer, or values of a text."""
    kinds = [_bytes(whole)]
    if reader.layer is not None:
        unpack, pack = reader.layer
        kinds += [_bytes(unpack(whole)).map(pack)] * 2
    if reader.file.endswith((".json", ".yaml")):
        kinds += [_tree(reader.file, whole)] * 2
    return st.one_of(kinds)


NUMBERS = (-(2**31), -1, 0, 1, 2, 255, 30_000, 100_000, 2**31 - 1)
FLOATS = (float("nan"), float("inf"), -0.0, 1e38, 1e-45)
CHUNKS = tuple(
    {struct.pack(order + "i", number) for order in "<>" for number in NUMBERS}
    | {struct.pack(order + "h", max(-(2**15), min(2**15 - 1, n))) for order in "<>" for n in NUMBERS}
    | {struct.pack("<" + kind, value) for kind in "fd" for value in FLOATS}
)


@st.composite
def _bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        size = len(content)
        # headers decide what is made of a file, so most of the damage goes there
        at = draw(st.one_of(st.integers(0, min(size, 400)), st.integers(0, size)))
        kind = draw(st.sampled_from(("flip", "number", "number", "cut", "insert", "drop", "repeat")))
        if kind == "flip" and at < size:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "number":
            chunk = draw(st.sampled_from(sorted(CHUNKS)))
            content[at : at + len(chunk)] = chunk
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "drop":
            del content[at : at + draw(st.integers(1, 64))]
        else:
            content[at:at] = content[at : at + draw(st.integers(1, 64))]
    return bytes(content)


_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 7, 2**31, 2**70, 10**400, 1.5, -0.0, 1e308, float("inf"), float("nan")]),
    st.sampled_from(
        ["", "a", "0", "../..", "/", "\0", "\ud800", "x" * 300, "[red]", "é", "0000", "1e5", "-1"]
    ),
)
_JUNK = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@st.composite
def _tree(draw: st.DrawFn, file: str, whole: bytes) -> bytes:
    """Replace, drop or double a value anywhere in a JSON or YAML text."""
    is_json = file.endswith(".json")
    content = json.loads(whole) if is_json else yaml.safe_load(whole)
    for _ in range(draw(st.integers(1, 3))):
        content = _changed(draw, content)
    if is_json:
        return json.dumps(content).encode()
    return yaml.dump(content, Dumper=yaml.SafeDumper).encode("utf-8", "surrogatepass")


def _changed(draw: st.DrawFn, content: Any) -> Any:
    keys = (
        list(content)
        if isinstance(content, dict)
        else range(len(content))
        if isinstance(content, list)
        else []
    )
    if not keys or draw(st.integers(0, 3)) == 0:
        return draw(_JUNK)
    key = draw(st.sampled_from(keys))
    copy = dict(content) if isinstance(content, dict) else list(content)
    kind = draw(st.sampled_from(("inside", "inside", "inside", "drop", "twice")))
    if kind == "drop":
        del copy[key]
    elif kind == "twice" and isinstance(copy, list):
        copy.append(copy[key])
    elif kind == "twice":
        copy[draw(st.text(max_size=3))] = copy[key]
    else:
        copy[key] = _changed(draw, copy[key])
    return copy
