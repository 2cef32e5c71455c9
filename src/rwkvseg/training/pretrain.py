"""Pre-train an encoder, from recipe to encoder file.

RUN/
    recipe.yaml environment.json pictures.json   before the first step
    metrics.csv checkpoints/last.ckpt            every epoch (or as the recipe says)
    curves.png encoder.safetensors [encoder_ema.safetensors]
    summary.json                                 last of all: a run with it is complete
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rwkvseg.data.files import read_json
from rwkvseg.errors import DataError, RecipeError
from rwkvseg.inference.device import choose_device
from rwkvseg.models.config import RWKVUNetConfig
from rwkvseg.models.encoder_files import save_encoder
from rwkvseg.models.pretraining import EncoderClassifier, MaskedReconstruction
from rwkvseg.models.registry import create_model
from rwkvseg.models.rwkv_unet import RWKVUNet
from rwkvseg.output import write_json, write_text
from rwkvseg.training.checkpoints import last_checkpoint
from rwkvseg.training.environment import describe_environment
from rwkvseg.training.history import History, Score, TrainingProgress
from rwkvseg.training.pretrain_data import Pictures, PretrainData, open_pictures
from rwkvseg.training.pretrain_module import PretrainModule
from rwkvseg.training.pretrain_recipe import PretrainRecipe
from rwkvseg.training.processes import FIRST_PROCESS, part, require_share
from rwkvseg.training.run_folder import DESCRIPTION, holds_run, require_same_recipe
from rwkvseg.training.trainer import train_or_resume
from rwkvseg.wording import counted

TOP1 = ("val_top1", "val_top5")
Pretrained = EncoderClassifier | MaskedReconstruction


@dataclass(frozen=True)
class PretrainResult:
    """Where a finished pre-training lies, its summary, and its encoder files: last weights, then average."""

    folder: Path
    summary: dict[str, Any]
    encoders: tuple[Path, ...]


def pretrain(
    recipe: PretrainRecipe,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    console: Console | None = None,
) -> PretrainResult:
    """Carry out a recipe of pre-training; `encoder.safetensors` then feeds `create_model(encoder_weights=)`.

    Killed at any moment, the same call with `resume=True` goes on; on a CPU the result is that of an
    uninterrupted run, bit for bit.

    Args:
        recipe: the whole description.
        out: the run folder, made when missing.
        device: "auto", "cpu" or "cuda"; how many, `training.devices` says.
        resume: continue the run in `out`; where there is none yet, start it.
        console: where progress goes; None keeps quiet.

    Raises:
        UsageError: `out` holds a run and `resume` is not set.
        RecipeError: the recipe lacks something or differs from the run's, or its network has no encoder.
        DataError: pictures that cannot be used, or others than the run began with.
        BackendError: the device is not there.
        OutputError: a result cannot be written.
    """
    started = time.perf_counter()
    pictures, chosen = open_pictures(recipe), choose_device(device)
    if recipe.task == "classify":
        require_share(recipe.training.devices, len(pictures.val), "pictures to validate")
    if FIRST_PROCESS:
        _check_run(out, recipe, pictures, resume=resume)
    network, config = build_network(recipe, len(pictures.classes))
    if FIRST_PROCESS:
        _describe_run(out, recipe, pictures, chosen)
    if console is None or not FIRST_PROCESS:
        console = Console(quiet=True)
    run = _Pretraining(recipe, out, pictures, chosen, console)
    module, history = run.fit(network, started)
    return run.finish(module, config, history)


def build_network(recipe: PretrainRecipe, num_classes: int) -> tuple[Pretrained, RWKVUNetConfig]:
    """Make the network of the recipe's task with the fresh weights of its seed, and the encoder's config.

    Raises:
        RecipeError: a network without an encoder of ours.
    """
    torch.manual_seed(recipe.training.seed)
    model = create_model(recipe.model.name, in_channels=3, **recipe.model.overrides)
    if not isinstance(model, RWKVUNet):
        raise RecipeError(
            f"{recipe.model.name} has no encoder that could be trained alone. Set model.name to an RWKV-UNet."
        )
    config = model.config
    torch.manual_seed(recipe.training.seed)
    classify = recipe.task == "classify"
    network = EncoderClassifier(config, num_classes) if classify else MaskedReconstruction(config)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.training.compile:
        network.compile()
    return network, config


@dataclass(frozen=True)
class _Pretraining:
    recipe: PretrainRecipe
    out: Path
    pictures: Pictures
    device: torch.device
    console: Console

    def fit(self, network: Pretrained, started: float) -> tuple[PretrainModule, History]:
        """Train from the start or from the last checkpoint; the module then holds the last weights."""
        settings = self.recipe.training
        self._say_what_is_seen()
        averaged = ("ema_top1", "ema_top5") if settings.ema is not None else ()
        score = Score((*TOP1, *averaged) if self.recipe.task == "classify" else (), "top-1")
        history = History(self.out, score, begun=started)
        saving = last_checkpoint(self.out, every=settings.checkpoint_every)
        module = PretrainModule(network, self.recipe)
        train_or_resume(
            module,
            PretrainData(self.pictures, self.recipe),
            self.recipe,
            out=self.out,
            device=self.device,
            callbacks=[history, TrainingProgress(self.console, score), saving],
        )
        part()
        return module, history

    def _say_what_is_seen(self) -> None:
        pictures = self.pictures
        text = f"{counted(len(pictures.train), 'picture')} to train on"
        if pictures.val:
            text += f", {len(pictures.val)} to validate, {counted(len(pictures.classes), 'class', 'classes')}"
        left_out = len(pictures.record.get("left_out_as_equal_to", {}))
        text += f"; {left_out} left out: equal to held-out ones" if left_out else ""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def finish(self, module: PretrainModule, config: RWKVUNetConfig, history: History) -> PretrainResult:
        """Write encoder files and summary; of several processes only the first writes."""
        if not FIRST_PROCESS:
            return PretrainResult(self.out, {}, ())
        networks: dict[str, Any] = {"encoder.safetensors": module.network}
        if module.average is not None:
            networks["encoder_ema.safetensors"] = module.average.module
        for name, network in networks.items():
            save_encoder(
                self.out / name,
                network.encoder.state_dict(),
                model=self.recipe.model.name,
                config=asdict(config),
                protocol=self._protocol(),
            )
        summary = self._summary(module, history)
        summary["total_seconds"] = history.total_seconds
        write_json(self.out / "summary.json", summary)
        return PretrainResult(self.out, summary, tuple(self.out / name for name in networks))

    def _protocol(self) -> dict[str, Any]:
        recipe = self.recipe
        return {
            "recipe": recipe.name,
            "task": recipe.task,
            "pictures": len(self.pictures.train),
            "epochs": recipe.training.epochs,
            "seed": recipe.training.seed,
            "normalisation": recipe.pictures.normalisation,
            "licence": recipe.data.licence,
        }

    def _summary(self, module: PretrainModule, history: History) -> dict[str, Any]:
        recipe, last = self.recipe, history.rows[-1]
        encoder: Any = module.network.encoder
        return {
            "recipe": recipe.name,
            "task": recipe.task,
            "model": recipe.model.name,
            "encoder_parameters": sum(parameter.numel() for parameter in encoder.parameters()),
            "pictures": {"train": len(self.pictures.train), "val": len(self.pictures.val)},
            "classes": len(self.pictures.classes) or None,
            "epochs": len(history.rows),
            "devices": recipe.training.devices,
            **history.cost(recipe.training.batch_size, self.device),
            "results": {name: last[name] for name in ("train_loss", "val_loss", *history.score.names)},
        }


def _check_run(out: Path, recipe: PretrainRecipe, pictures: Pictures, *, resume: bool) -> None:
    if not holds_run(out, resume=resume):
        return
    free = ("data.path", *(f"data.sources.{name}.path" for name in recipe.data.sources))
    files = tuple(f"data.sources.{name}.{key}" for name in recipe.data.sources for key in ("recipe", "list"))
    require_same_recipe(out / DESCRIPTION, recipe, free=free + files)
    if read_json(out / "pictures.json") != json.loads(json.dumps(pictures.record)):
        raise DataError(
            f"the pictures differ from those in {out / 'pictures.json'} that the run began with. "
            "Restore them, or start a new run with another --out."
        )


def _describe_run(out: Path, recipe: PretrainRecipe, pictures: Pictures, device: torch.device) -> None:
    if (out / DESCRIPTION).exists():
        return
    write_json(out / "environment.json", describe_environment(device))
    write_json(out / "pictures.json", pictures.record)
    write_text(out / DESCRIPTION, recipe.to_yaml())
