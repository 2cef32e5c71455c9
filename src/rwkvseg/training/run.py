"""A run from recipe to report: prepare the folder, fit, export the model, test it on unseen cases."""

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from rwkvseg import __version__
from rwkvseg.data.layouts import DataFolder
from rwkvseg.data.preprocessing import Preprocessing, normalise
from rwkvseg.data.reading import read_case
from rwkvseg.data.splits import Split
from rwkvseg.data.volumes import plan_grid
from rwkvseg.errors import RecipeError
from rwkvseg.inference.device import choose_device
from rwkvseg.inference.evaluate import Evaluation, evaluate
from rwkvseg.inference.model_file import Architecture, ModelDescription, save_model, write_description
from rwkvseg.inference.predict import predict_files
from rwkvseg.inference.predictor import Predictor
from rwkvseg.models.registry import create_model
from rwkvseg.output import held_alone, write_json
from rwkvseg.progress import progress_bar
from rwkvseg.training.checkpoints import SafeCheckpointIO, best_path, checkpoint_callbacks, last_path
from rwkvseg.training.datamodule import SegmentationData
from rwkvseg.training.freezing import freeze_encoder
from rwkvseg.training.fusion import FusionHistory, read_sections
from rwkvseg.training.history import History, TrainingProgress
from rwkvseg.training.items import unnoticed
from rwkvseg.training.module import SegmentationModule
from rwkvseg.training.processes import FIRST_PROCESS, RANK, part, require_devices
from rwkvseg.training.recipe import Recipe
from rwkvseg.training.run_folder import (
    DESCRIPTION,
    ENCODER,
    TrainingFingerprint,
    check_run,
    describe_run,
    open_recipe_data,
    part_files,
)
from rwkvseg.training.trainer import train_or_resume


@dataclass(frozen=True)
class RunResult:
    """Where a finished run lies, its summary, and the evaluation of each part that has cases."""

    folder: Path
    summary: dict[str, Any]
    evaluations: dict[str, Evaluation]


def train(
    recipe: Recipe, out: Path, *, device: str = "auto", resume: bool = False, console: Console | None = None
) -> RunResult:
    """Carry out a recipe: train, keep the last and the best checkpoint, export the model, evaluate it.

    Killed at any moment, the same call with `resume=True` goes on from the last saved epoch; on a CPU the
    result equals that of an uninterrupted run bit for bit. On several devices (`training.devices`) the
    program that called this runs once for each; all but the first get a result without summary and
    evaluations.

    Args:
        recipe: the whole description; its `data.path` must be set.
        out: the run folder, made when missing.
        device: "auto", "cpu" or "cuda".
        resume: continue the run in `out`; where there is none yet, start it.
        console: where progress goes; None keeps quiet.

    Raises:
        UsageError: `out` holds a run and `resume` is not set, or another process works on it.
        RecipeError: the recipe lacks something or differs from the run's.
        TrainingError: the loss is no number any more.
        DataError: a case cannot be used; it is named.
        BackendError: the device is not there.
        OutputError: a result cannot be written.
    """
    started = time.perf_counter()
    chosen = choose_device(device)
    require_devices(chosen, recipe.training.devices)
    folder, labels, split = open_recipe_data(recipe)
    if FIRST_PROCESS:
        check_run(out, recipe, folder, split, resume=resume)
    if console is None or not FIRST_PROCESS:
        console = Console(quiet=True)
    if resume and not (out / DESCRIPTION).exists():
        console.print(f"{out} holds no run to go on with: a new one begins", highlight=False, markup=False)
    run = _Run(recipe, out, folder, labels, split, chosen, console)
    fingerprint = TrainingFingerprint(replace(folder, labels=labels), split)
    network, data = run.build_network(), run.read_data(fingerprint)  # what they refuse leaves no folder
    if FIRST_PROCESS:
        describe_run(out, recipe, folder, split, chosen, fingerprint=fingerprint)
    with held_alone(out) if FIRST_PROCESS else nullcontext():
        history = run.fit(network, data, started)
        data.close()
        part()
        if not FIRST_PROCESS:
            return RunResult(out, {}, {})
        return run.finish(network, history, data.recipe.preprocessing)


@dataclass(frozen=True)
class _Run:
    recipe: Recipe
    out: Path
    folder: DataFolder
    labels: dict[str, int]
    split: Split
    device: torch.device
    console: Console

    def read_data(self, fingerprint: TrainingFingerprint) -> SegmentationData:
        """Read every case once; the test part's too, lest a bad file of it shows after hours of training."""
        is_described = not FIRST_PROCESS or (self.out / DESCRIPTION).exists()  # of a run that goes on
        with progress_bar(self.console, "reading cases", sum(map(len, self.split.parts.values()))) as advance:
            data = SegmentationData(
                self.folder.cases,
                self.split,
                self.labels,
                self.recipe,
                on_case=advance,
                on_read=unnoticed if is_described else fingerprint.take,
                scratch=self.out / ("volumes" if FIRST_PROCESS else f"volumes_{RANK}"),
            )
            check = normalise if self.recipe.preprocessing.dimensions == 2 else plan_grid
            for files in part_files(self.folder, self.split, "test"):
                check(read_case(files, self.labels), self.recipe.preprocessing)
                advance()
        return data

    def fit(self, network: nn.Module, data: SegmentationData, started: float) -> History:
        """Train from the start or from the last checkpoint; `network` then holds what the last epoch left."""
        settings = self.recipe.training
        module = SegmentationModule(
            network, self.recipe, num_classes=len(self.labels), val_cases=len(self.split.val)
        )
        history = History(self.out, begun=started)
        saving = checkpoint_callbacks(
            self.out, every=settings.checkpoint_every, validate_every=settings.validate_every
        )
        train_or_resume(
            module,
            data,
            self.recipe,
            out=self.out,
            device=self.device,
            callbacks=[history, FusionHistory(self.out), TrainingProgress(self.console), *saving],
        )
        if module.average is not None:
            network.load_state_dict(module.result.state_dict())
        torch.backends.cudnn.benchmark = False  # single images of many sizes are to follow
        return history

    def build_network(self) -> nn.Module:
        """Network of the recipe with the fresh weights of its seed."""
        torch.manual_seed(self.recipe.training.seed)
        network: nn.Module = create_model(
            self.recipe.model.name,
            in_channels=self.recipe.preprocessing.channels,
            num_classes=len(self.labels),
            encoder_weights=self._encoder_weights(),
            **self.recipe.model.overrides,
        )
        self._check_dimensions(network)
        if self.recipe.model.freeze_encoder:
            freeze_encoder(network)
        if self.recipe.preprocessing.dimensions == 2:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.recipe.training.compile:
            network.compile()
        return network

    def _check_dimensions(self, network: nn.Module) -> None:
        wanted = self.recipe.preprocessing.dimensions
        found = getattr(network, "spatial_dims", 2)
        if found != wanted:
            raise RecipeError(
                f"preprocessing.dimensions is {wanted}, but {self.recipe.model.name} takes {found} axes. "
                "Choose another model; MONAI's take model.overrides: {spatial_dims: 3}."
            )

    def _encoder_weights(self) -> Path | None:
        # a run that goes on has all its weights in its checkpoint
        resumed = last_path(self.out).exists()
        return None if resumed else self.recipe.model.encoder_weights

    def finish(self, network: nn.Module, history: History, preprocessing: Preprocessing) -> RunResult:
        """Export the reported checkpoint, evaluate it on val and test, write the summary."""
        if self.recipe.training.report == "best":
            state = SafeCheckpointIO().load_checkpoint(best_path(self.out))["state_dict"]
            kept = "network." if self.recipe.training.ema is None else "average.module."
            weights = {name.removeprefix(kept): x for name, x in state.items() if name.startswith(kept)}
            network.load_state_dict(weights, strict=True)
        description = save_model(self.out / "model", network, self._description(preprocessing))
        at_once = self.recipe.training.batch_size if self.device.type == "cuda" else None
        predictor = Predictor(network, description, self.device, batch_size=at_once)
        evaluations = {
            part: self._evaluate(predictor, part) for part in ("val", "test") if self.split.parts[part]
        }
        metrics = {part: _metrics(evaluation) for part, evaluation in evaluations.items()}
        write_description(self.out / "model", description.model_copy(update={"metrics": metrics}))
        summary = self._summary(network, history, metrics) | {"total_seconds": history.total_seconds}
        write_json(self.out / "summary.json", summary)
        return RunResult(self.out, summary, evaluations)

    def _description(self, preprocessing: Preprocessing) -> ModelDescription:
        recipe, split = self.recipe, self.split
        return ModelDescription(
            rwkvseg_version=__version__,
            architecture=Architecture(
                name=recipe.model.name,
                in_channels=recipe.preprocessing.channels,
                num_classes=len(self.labels),
                overrides=recipe.model.overrides,
            ),
            labels=self.labels,
            preprocessing=preprocessing,
            protocol={
                "recipe": recipe.name,
                "split": {"rule": split.rule, "seed": split.seed},
                "cases": {part: len(cases) for part, cases in self.split.parts.items()},
                "epochs": recipe.training.epochs,
                "checkpoint": recipe.training.report,
                "seed": recipe.training.seed,
                **self._start(),
            },
            licence=recipe.data.licence
            if recipe.data.licence != "not stated"
            else self.folder.licence or "not stated",
        )

    def _start(self) -> dict[str, Any]:
        """What a training that did not begin from scratch began with, for model.json."""
        if self.recipe.model.encoder_weights is None:
            return {}
        weights = json.loads((self.out / ENCODER).read_text(encoding="utf-8"))
        return {"encoder_weights": weights, "frozen_encoder": self.recipe.model.freeze_encoder}

    def _evaluate(self, predictor: Predictor, part: str) -> Evaluation:
        files = part_files(self.folder, self.split, part)
        predictions = self.out / "predictions" / part
        with progress_bar(self.console, f"predicting {part}", len(files)) as advance:
            predict_files(predictor, files, predictions, on_case=lambda _: advance())
        with progress_bar(self.console, f"evaluating {part}", len(files)) as advance:
            return evaluate(
                predictions,
                self.folder.root,
                self.out / "evaluation" / part,
                labels=self.labels,
                layout=self.recipe.data.layout,
                only={case.id for case in files},
                scored=self.recipe.data.scored,
                regions=self.recipe.data.regions,
                seed=self.recipe.training.seed,
                context={
                    "recipe": self.recipe.name,
                    "part": f"{part} ({self.split.rule} split, seed {self.split.seed})",
                    "checkpoint": f"{self.recipe.training.report}, epoch {self.recipe.training.epochs}",
                    "trained on": self._device_name(),
                    "licence of the data": predictor.description.licence,
                },
                sections=read_sections(self.out),
                on_case=advance,
            )

    def _device_name(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        devices = self.recipe.training.devices
        return name if devices == 1 else f"{devices} x {name}"

    def _summary(self, network: nn.Module, history: History, metrics: dict[str, Any]) -> dict[str, Any]:
        scored = [row for row in history.rows if row["val_dsc"] is not None]
        best = max(scored, key=lambda row: row["val_dsc"] or 0.0, default=None)
        return {
            "recipe": self.recipe.name,
            "model": self.recipe.model.name,
            "checkpoint": self.recipe.training.report,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "epochs": len(history.rows),
            "devices": self.recipe.training.devices,
            **history.cost(self.recipe.training.batch_size, self.device),
            "best_epoch": int(best["epoch"] or 0) + 1 if best else None,
            "best_val_dsc_on_network_grid": best["val_dsc"] if best else None,
            "results": metrics,
        }


def _metrics(evaluation: Evaluation) -> dict[str, Any]:
    content = evaluation.summary.to_json()
    return {
        "protocol": content["protocol"],
        "cases": len(content["cases"]),
        "mean": content["mean"],
        "classes": content["classes"],
    }
