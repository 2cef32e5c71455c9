"""The learned weights of scan orders (U-RWKV, 3D) over a training: which axis does the network look along?

An order of scanning is named by its axes, the slowest first. Its decay is a profile along the slowest axis
and nearly flat across the other two, so its weight is the share of that axis.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from rwkvseg.evaluation.plots import fusion_plot
from rwkvseg.evaluation.report import Section
from rwkvseg.models.urwkv3d import URWKV3d
from rwkvseg.output import write_atomically, write_text

FusionRow = dict[str, Any]  # epoch, block, and the weight of each order by its name
TABLE = "fusion_weights.csv"
PLOT = "fusion_weights.png"
CLEAR = 0.05  # above the mean of a block's weights: less is called no preference


class FusionHistory(Callback):  # type: ignore[misc]
    """Keeps the weights of every block and epoch; they travel in the checkpoint, as those of `History` do.

    Writes fusion_weights.csv every epoch and fusion_weights.png at the end, but nothing of a network without
    learned weights. Epoch -1 is the start.

    Args:
        folder: where the files go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[FusionRow] = []

    def state_dict(self) -> dict[str, Any]:
        """Rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of the checkpoint."""
        self.rows = list(state_dict["rows"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what a fresh training begins with."""
        if not self.rows and trainer.current_epoch == 0:
            self.rows += read_weights(pl_module.network, -1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch's rows and write the table."""
        self.rows += read_weights(pl_module.network, trainer.current_epoch)
        if self.rows and trainer.is_global_zero:
            write_text(self.folder / TABLE, _table(self.rows))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the weights once, at the end."""
        if self.rows and trainer.is_global_zero:
            with write_atomically(self.folder / PLOT) as temporary:
                temporary.write_bytes(fusion_plot(self.rows))


def read_weights(network: nn.Module, epoch: int) -> list[FusionRow]:
    """One row a block; weights of one number a channel are averaged. Empty where there are none to learn."""
    if not isinstance(network, URWKV3d) or network.config.mixer != "wkv" or network.config.fusion == "sum":
        return []
    orders = network.config.scans
    rows = []
    for block, weights in network.fusion_weights().items() if len(orders) > 1 else ():
        means = weights.float().reshape(len(orders), -1).mean(1).tolist()
        named = dict(zip(orders, (round(mean, 6) for mean in means), strict=True))
        rows.append({"epoch": epoch, "block": block} | named)
    return rows


def read_sections(run: Path) -> list[Section]:
    """What the report shows of a run's table: plot, and the last epoch; nothing where there is no table."""
    path = run / TABLE
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    numbers = [{k: v if k == "block" else float(v) for k, v in row.items()} for row in read]
    plot = run / PLOT  # drawn at the training's end, of the same rows
    return [fusion_section(numbers, plot.read_bytes() if plot.exists() else None)]


def fusion_section(rows: Sequence[FusionRow], plot: bytes | None = None) -> Section:
    """Plot over the epochs, drawn where it is not given, and table of the last one."""
    last = [row for row in rows if row["epoch"] == rows[-1]["epoch"]]
    orders = orders_of(rows)
    heads = ["block", *(f"{axis_of(order)} ({order})" for order in orders), "looks along"]
    table = [heads, *([row["block"], *(f"{row[o]:.3f}" for o in orders), preference(row)] for row in last)]
    note = (
        "Weight of each scan order in the sum of a block, by epoch; the table shows the last one. An order "
        "reads the volume along its first axis most slowly, and its decay is a profile along that axis: a "
        f"larger weight means looking along it. Less than {CLEAR} above the mean is called no axis."
    )
    return Section("Which axis the network looks along", note, table, plot or fusion_plot(rows))


def orders_of(rows: Sequence[FusionRow]) -> list[str]:
    """Names of the orders, as they stand in the rows."""
    return [key for key in rows[0] if key not in ("epoch", "block")]


def axis_of(order: str) -> str:
    """Axis along which an order's decay is a profile: its slowest.

    >>> axis_of("hwd")
    'H'
    """
    return order[0].upper()


def preference(row: FusionRow) -> str:
    """Axis of the largest weight where it stands out, else "no axis".

    >>> preference({"epoch": 3, "block": "a", "dhw": 0.6, "hwd": 0.2, "wdh": 0.2})
    'D'
    """
    orders = orders_of([row])
    mean = sum(row[order] for order in orders) / len(orders)
    best = max(orders, key=lambda order: float(row[order]))
    return axis_of(best) if row[best] - mean > CLEAR else "no axis"


def _table(rows: Sequence[FusionRow]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["epoch", "block", *orders_of(rows)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
