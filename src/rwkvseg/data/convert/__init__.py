"""A data folder of one layout in, the same cases in another out: `rwkvseg data convert`.

The result is made in a hidden folder beside its place and renamed when it is whole. What an interrupted
conversion has done is found there, and kept if source and options are still the same.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from rwkvseg.data.convert import arrays, images, nnunet_msd
from rwkvseg.data.convert.plan import LAYOUTS, Layout, Options, Plan, make_plan, read_item
from rwkvseg.data.convert.result import Done
from rwkvseg.errors import OutputError, UsageError
from rwkvseg.output import write_json
from rwkvseg.wording import counted

__all__ = ["LAYOUTS", "Converted", "Layout", "Options", "convert_data"]

RECORD = "conversion.json"
JOURNAL = "journal.jsonl"
TARGETS: dict[Layout, ModuleType] = {
    "nnunet": nnunet_msd, "msd": nnunet_msd, "images": images, "transunet": arrays,
}  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """What was made, and what the target could not hold."""

    folder: Path
    cases: int
    parts: dict[str | None, int]
    """Number of cases by part; None: without a part."""
    lost: tuple[str, ...]
    """Each with the number of cases that it is true of."""
    notes: tuple[str, ...]
    resumed: int
    """Cases that an interrupted conversion had done."""


def convert_data(
    source: Path,
    target: Path,
    options: Options,
    on_case: Callable[[int, int], object] = lambda _done, _total: None,
) -> Converted:
    """Convert a data folder to another layout; `conversion.json` beside the result says what was lost.

    Args:
        source: data folder of any layout that `open_data` reads.
        target: folder to be made; it may be there if it is empty.
        options: what to make, and how.
        on_case: called with the number of cases done and in all.

    Raises:
        UsageError: `target` holds something, lies within the source or the other way round, or holds an
            unfinished conversion of something else.
        DataError: a case that cannot be read or that the target cannot hold.
        OutputError: the disk refuses.
    """
    source, target = Path(source).resolve(), Path(target).resolve()
    _require_free(source, target)
    _check_window(options)
    plan = make_plan(source, target, options, on_case)
    partial = target.with_name(f".{target.name}.partial")
    finished = _begin(partial, plan)
    done: list[Done] = []
    writer = TARGETS[options.to]
    for number, item in enumerate(plan.items, 1):
        case_done = finished.get(item.id)
        if case_done is None:
            case_done = writer.write_case(item, read_item(item, plan), plan, partial)
            _note(partial / JOURNAL, case_done)
        done.append(case_done)
        on_case(number, len(plan.items))
    notes = [*plan.notes, *writer.finish(partial, plan, done)]
    lost = _told(done)
    write_json(partial / RECORD, _description(plan, done, lost, notes))
    (partial / JOURNAL).unlink()
    _rename(partial, target)
    parts = dict(Counter(item.part for item in plan.items))
    return Converted(target, len(done), parts, tuple(lost), tuple(notes), len(finished))


def _require_free(source: Path, target: Path) -> None:
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise UsageError(f"{target} and {source} lie within each other. Choose a folder beside the source.")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file. Choose another folder.")
    if target.is_dir() and any(target.iterdir()):
        what = "already holds a finished conversion" if (target / RECORD).is_file() else "is not empty"
        raise UsageError(f"{target} {what}, and nothing is overwritten. Remove it or choose another folder.")


def _check_window(options: Options) -> None:
    if options.window is None:
        return
    if options.to in ("nnunet", "msd"):
        raise UsageError(f"a window is for images and transunet; {options.to} keeps intensities. Drop it.")
    low, high = options.window
    if not low < high:
        raise UsageError(f"the window {low:g} to {high:g} is empty. Give the lower intensity first.")


def _begin(partial: Path, plan: Plan) -> dict[str, Done]:
    """Start a conversion, or take up the one that is there: its first line says of what it is."""
    journal, begun = partial / JOURNAL, {"begun": _digest(plan)}
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lines = journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []
        read = [entry for line in lines if (entry := _parsed(line)) is not None]
        if read and read[0] != begun:
            raise UsageError(
                f"{partial} holds an unfinished conversion of other data or with other options. "
                "Remove it, or run that command again."
            )
        if not read:
            shutil.rmtree(partial)
            partial.mkdir()
        for path in partial.rglob(".*.partial.*"):  # of a process that was killed while it wrote
            path.unlink()
        # written anew: what an interruption left of a last line must not spoil the next
        journal.write_text("".join(json.dumps(entry) + "\n" for entry in (read or [begun])), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write {partial}: {error.strerror or error}. Choose another folder."
        ) from error
    return {done.source: done for done in map(_to_done, read[1:])}


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _to_done(entry: dict[str, Any]) -> Done:
    tuples = {field.name for field in fields(Done) if "tuple" in str(field.type)}
    content: dict[str, Any] = {key: tuple(entry[key]) if key in tuples else entry[key] for key in entry}
    return Done(**content)


def _note(journal: Path, done: Done) -> None:
    try:
        with journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(done)) + "\n")
    except OSError as error:
        raise OutputError(
            f"cannot write {journal}: {error.strerror or error}. "
            "Free some space, then run the same command again: it goes on."
        ) from error


def _digest(plan: Plan) -> str:
    """Hash of the options and of every file's name, size and time."""
    digest = hashlib.sha256(repr((plan.folder.root, plan.options, plan.labels, plan.channels)).encode())
    if plan.options.split is not None:
        digest.update(plan.options.split.read_bytes())
    for item in plan.items:
        digest.update(repr((item.id, item.part, item.group)).encode())
        for files in item.sources:
            for path in (*files.images, *([files.label] if files.label else []), *files.joined):
                status = path.stat()
                digest.update(repr((str(path), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _told(done: Sequence[Done]) -> list[str]:
    counts = Counter(message for case in done for message in case.lost)
    return [f"{number} of {counted(len(done), 'case')}: {message}" for message, number in counts.items()]


def _description(
    plan: Plan, done: Sequence[Done], lost: Sequence[str], notes: Sequence[str]
) -> dict[str, Any]:
    from rwkvseg import __version__

    options = {
        key: str(value) if isinstance(value, Path) else value for key, value in asdict(plan.options).items()
    }
    return {
        "rwkvseg_version": __version__,
        "source": str(plan.folder.root),
        "source_layout": plan.folder.layout,
        "options": options,
        "lost": list(lost),
        "notes": list(notes),
        "cases": {case.source: {"ids": list(case.ids), "part": case.part} | case.record for case in done},
    }


def _rename(partial: Path, target: Path) -> None:
    try:
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        told = error.strerror or error
        raise OutputError(f"cannot rename {partial} to {target}: {told}. Rename it yourself.") from error
