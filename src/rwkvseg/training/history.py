"""What a run leaves behind while it trains: metrics.csv, curves.png, and a progress line with an ETA."""

import csv
import io
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rwkvseg.errors import TrainingError
from rwkvseg.output import write_atomically, write_text


@dataclass(frozen=True)
class Score:
    """Figures of the validation: the first is shown while training and drawn, in %; all are kept."""

    names: tuple[str, ...] = ("val_dsc",)
    label: str = "DSC"


DSC = Score()


class History(Callback):  # type: ignore[misc]
    """Keeps one row per epoch; the rows travel in the checkpoint, so a resumed run continues its own table.

    Args:
        folder: where metrics.csv and curves.png are written.
        score: what the validation measures beside the loss.
        begun: `time.perf_counter()` when this call of the run began; None: now.
    """

    def __init__(self, folder: Path, score: Score = DSC, *, begun: float | None = None) -> None:
        self.folder = folder
        self.score = score
        self._begun = time.perf_counter() if begun is None else begun
        self._earlier_calls = 0.0
        self.rows: list[dict[str, float | int | None]] = []
        self._started = 0.0
        self._before = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Rows so far, and the seconds that all calls of the run took."""
        return {"rows": self.rows, "total_seconds": self.total_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows and the seconds of the checkpoint."""
        self.rows = list(state_dict["rows"])
        trained = float(self.rows[-1]["seconds"] or 0.0) if self.rows else 0.0
        self._earlier_calls = float(state_dict.get("total_seconds", trained))  # older checkpoints have none

    @property
    def total_seconds(self) -> float:
        """Of all calls of the run: the earlier ones up to their last checkpoint, and this one up to now."""
        return round(self._earlier_calls + time.perf_counter() - self._begun, 1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock where the last row stopped."""
        self._started = time.perf_counter()
        self._before = float(self.rows[-1]["seconds"] or 0.0) if self.rows else 0.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch's row and write the table."""
        validated = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        metrics = trainer.callback_metrics
        row: dict[str, float | int | None] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row["learning_rate"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        row["train_loss"] = _finite(float(metrics["train_loss"]), trainer.current_epoch + 1)
        for name in ("val_loss", *self.score.names):
            value = float(metrics[name]) if validated and name in metrics else math.nan
            row[name] = None if math.isnan(value) else value
        row["seconds"] = round(self._before + time.perf_counter() - self._started, 2)
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write_table()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curves once, at the end."""
        if trainer.is_global_zero:
            draw_curves(self.rows, self.folder / "curves.png", self.score)

    def cost(self, batch_size: int, device: torch.device) -> dict[str, float | None]:
        """Seconds of training, images a second (validation included), and the most memory of the GPU."""
        seconds = float(self.rows[-1]["seconds"] or 0.0)
        images = int(self.rows[-1]["step"] or 0) * batch_size
        cuda = device.type == "cuda"
        return {
            "training_seconds": seconds,
            "images_per_second": round(images / seconds, 1) if seconds else None,
            "peak_gpu_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        }

    def _write_table(self) -> None:
        text = io.StringIO()
        columns = ("epoch", "step", "learning_rate", "train_loss", "val_loss", *self.score.names, "seconds")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.folder / "metrics.csv", text.getvalue())


def _finite(loss: float, epoch: int) -> float:
    """Return a loss that weights can still be learned from.

    Raises:
        TrainingError: NaN or infinity; called before the epoch's checkpoint is written.
    """
    if not math.isfinite(loss):
        raise TrainingError(
            f"the training loss of epoch {epoch} is {loss}: the weights are lost. Start a new run with a "
            "lower optimizer.learning_rate, optimizer.gradient_clip: 1.0 or training.precision: float32."
        )
    return loss


def draw_curves(rows: list[dict[str, float | int | None]], path: Path, score: Score = DSC) -> None:
    """Loss (left) and the validation's score in % (right) against the epoch, as PNG."""
    from matplotlib.figure import Figure  # loading it takes a second that only runs with a picture should pay

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in (("train_loss", "#0072b2"), ("val_loss", "#d55e00")):
        left.plot(*_points(rows, name, 1.0), color=colour, label=name.replace("_", " "))
    left.set(xlabel="epoch", ylabel="loss")
    left.legend(frameon=False)
    if score.names:
        right.plot(*_points(rows, score.names[0], 100.0), color="#009e73", marker=".")
    right.set(xlabel="epoch", ylabel=f"validation {score.label} (%)", ylim=(0, 100))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _points(
    rows: list[dict[str, float | int | None]], name: str, scale: float
) -> tuple[list[Any], list[Any]]:
    known = [(row["epoch"], row[name]) for row in rows if row[name] is not None]
    return [int(epoch or 0) + 1 for epoch, _ in known], [scale * float(value or 0.0) for _, value in known]


LIFE_SIGN = 60.0  # seconds without a line, where there is no terminal
COMPILING = "compiling GPU kernels, kept on disk"


class TrainingProgress(Callback):  # type: ignore[misc]
    """One bar over the whole run with loss, DSC and ETA.

    Without a terminal: what is trained and where, a line every tenth of the run, and one after a minute
    without any.
    """

    def __init__(self, console: Console, score: Score = DSC) -> None:
        self.console = console
        self.score = score
        self._bar: Progress | None = None
        self._task: Any = None
        self._text = "training"
        self._started = 0.0
        self._first = self._first_step = 0
        self._said = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the epoch where training starts or resumes."""
        self._started, self._first = time.perf_counter(), trainer.current_epoch
        self._said, self._first_step = self._started, trainer.global_step
        on_gpu = pl_module.device.type == "cuda"
        if not self.console.is_terminal:
            total, first = trainer.max_epochs or 1, self._first + 1
            self.console.print(
                f"training on {pl_module.device}, epochs {first} to {total}, {trainer.num_training_batches} "
                "steps each",
                highlight=False,
            )
            if on_gpu:
                self.console.print(f"{COMPILING}: the first epoch may take minutes", highlight=False)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
        text, total = COMPILING if on_gpu else self._text, int(trainer.estimated_stepping_batches)
        self._task = self._bar.add_task(text, total=total, completed=trainer.global_step)
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        now = time.perf_counter()
        if self._bar:
            self._bar.update(self._task, completed=trainer.global_step, description=self._text)
        elif now - self._said > LIFE_SIGN:
            done, total = trainer.global_step, int(trainer.estimated_stepping_batches)
            left = (now - self._started) / (done - self._first_step) * (total - done)
            self._say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {done}/{total}", left)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the epoch's figures."""
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 1
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        text = f"epoch {done}/{total}  loss {metrics['train_loss']:.3f}"
        for name in self.score.names[:1]:
            if name in metrics:
                text += f"  val {self.score.label} {100 * metrics[name]:.2f} %"
        self._text = text
        if self._bar:
            self._bar.update(self._task, description=text)
        elif done == total or done % max(1, total // 10) == 0:
            elapsed = time.perf_counter() - self._started
            self._say(text, elapsed / (done - self._first) * (total - done))

    def _say(self, text: str, left: float) -> None:
        self._said = time.perf_counter()
        elapsed = self._said - self._started
        self.console.print(f"{text}  {elapsed:.0f} s, about {left:.0f} s left", highlight=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar, also after a failure."""
        if self._bar:
            self._bar.stop()
            self._bar = None
