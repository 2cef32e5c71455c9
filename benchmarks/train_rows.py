r"""Train the rows of a table one after another, each by `rwkvseg train` in a process of its own.

    python benchmarks/train_rows.py kvasir_seg_tiny_scratch --data Kvasir-SEG -o runs --pack rows.tar.gz \
        --row tiny0 --row unet0 model.name=monai_basic_unet --row tiny1 split.seed=1 training.seed=1

A row begins when the one before it has left its model, while that is still being tested: scoring needs the
processor, training the GPU. The first row that fails stops the others. A run that is finished is not trained
again, one that was cut off goes on. What a table needs of every finished run goes into the --pack archive.
"""

import argparse
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KEPT = ("environment.json", "metrics.csv", "recipe.yaml", "split.json", "summary.json", "fusion_weights.csv")
LOOK = 0.5  # seconds between two looks


@dataclass(frozen=True)
class Row:
    """A training under way."""

    folder: Path
    process: subprocess.Popen[bytes]
    began: float

    def learns(self) -> bool:
        """Whether it has neither left its model nor ended."""
        return not self.ended() and not (self.folder / "model" / "model.json").exists()

    def ended(self) -> bool:
        """Whether its process is over."""
        return self.process.poll() is not None


def begin(options: argparse.Namespace, name: str, changes: Sequence[str]) -> Row:
    folder: Path = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "rwkvseg.cli", "train", options.recipe, "--data", options.data]
    command += ["-o", str(folder), "--resume", "--device", options.device]
    for change in [*options.set, *changes]:
        command += ["--set", change]
    with folder.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    return Row(folder, process, time.monotonic())


def finish(row: Row) -> bool:
    """Wait for its end; return whether it went well."""
    failed = row.process.wait() != 0
    print(
        f"{row.folder.name}: {'FAILED' if failed else 'done'}, {time.monotonic() - row.began:.0f} s",
        flush=True,
    )
    if failed:
        print(row.folder.with_suffix(".log").read_text(errors="replace")[-3000:], flush=True)
    return not failed


def pack_finished(options: argparse.Namespace) -> None:
    """Replace the archive by one of all finished runs."""
    if options.pack is None:
        return
    options.pack.parent.mkdir(parents=True, exist_ok=True)
    unfinished = options.pack.with_suffix(".part")
    with tarfile.open(unfinished, "w:gz") as archive:
        for name, *_ in options.row:
            run = options.out / name
            if not (run / "summary.json").exists():
                continue
            for path in (*map(run.joinpath, [*KEPT, *options.keep]), *run.glob("evaluation/*/scores.csv")):
                if path.exists():
                    archive.add(path, path.relative_to(options.out))
    unfinished.replace(options.pack)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="YAML file, or a name of `rwkvseg recipes`")
    parser.add_argument("--data", required=True)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--row", nargs="+", action="append", required=True, metavar=("NAME", "KEY=VALUE"))
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for every row"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--last-start", type=float, metavar="SECONDS", help="begin no row later than this")
    parser.add_argument("--pack", type=Path, help="archive (.tar.gz) of the small files of the finished runs")
    parser.add_argument(
        "--keep", nargs="+", action="extend", default=[], help="further files of a run for the archive"
    )
    options = parser.parse_args(arguments)
    started = time.monotonic()
    went_well = True
    pack_finished(options)  # of an earlier call
    begun: list[Row] = []  # and not ended: at most the row that learns and the one before, at its test
    for name, *changes in options.row:
        if (options.out / name / "summary.json").exists():
            print(f"{name}: finished before", flush=True)
            continue
        if options.last_start is not None and time.monotonic() - started > options.last_start:
            print(f"{name}: not begun", flush=True)
            went_well = False
            break
        begun.append(begin(options, name, changes))
        while begun[-1].learns() or len(begun) > 1:
            if len(begun) > 1 and (begun[0].ended() or not begun[1].learns()):
                went_well = finish(begun.pop(0))
                pack_finished(options)  # at once: who calls this may have a time limit
            time.sleep(LOOK)
        if not went_well or begun[-1].process.poll() not in (None, 0):
            break
    for row in begun:
        went_well = finish(row) and went_well
    pack_finished(options)
    return 0 if went_well else 1


if __name__ == "__main__":
    raise SystemExit(main())
