"""A recipe describes a whole run: data, split, preprocessing, network, loss, optimisation, augmentation.

It is read from YAML, checked once, and written unchanged into the run folder.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rwkvseg.data.preprocessing import Preprocessing
from rwkvseg.data.transforms import Augmentation
from rwkvseg.errors import UsageError
from rwkvseg.evaluation.regions import resolve_regions
from rwkvseg.models.registry import list_models
from rwkvseg.training.recipe_file import PathBeside, RecipeFile, Settings, Workers


class DataSettings(Settings):
    """Which data the run uses; `path` may be left to `--data`."""

    path: Path | None = None
    layout: Literal["auto", "images", "beside", "nnunet", "msd", "transunet"] = "auto"
    labels: dict[str, int] | None = None  # name -> value; None: as the data folder says
    scored: tuple[str, ...] | None = None  # names of the structures that the evaluation counts; None: all
    regions: dict[str, tuple[int | str, ...]] = Field(default_factory=dict)  # unions to score too, see docs
    licence: str = "not stated"
    citation: str = ""

    @model_validator(mode="after")
    def _scored_are_labels(self) -> Self:
        if self.scored is not None and self.labels is not None:
            unknown = [name for name in self.scored if not self.labels.get(name)]
            if unknown or not self.scored:
                raise ValueError(
                    f"scored names {', '.join(unknown) or 'nothing'}, which is no structure of labels"
                )
        return self

    @model_validator(mode="after")
    def _regions_join_labels(self) -> Self:
        try:
            resolve_regions(self.regions, self.labels or {})
        except UsageError as error:
            if self.labels is not None:  # else the data folder names them, and the evaluation checks
                raise ValueError(str(error)) from error
        return self

    @field_validator("labels")
    @classmethod
    def _labels_count_up_from_background(cls, labels: dict[str, int] | None) -> dict[str, int] | None:
        if labels is not None and sorted(labels.values()) != list(range(len(labels))):
            raise ValueError("values must be 0 (background), 1, 2, ... without gaps")
        if labels is not None and len(labels) < 2:
            raise ValueError("at least background and one structure are needed")
        return labels


class SplitSettings(Settings):
    """How cases are dealt into train, val and test; a `file` wins over the rule."""

    rule: Literal["paper", "grouped", "official"] = "paper"
    seed: int = Field(0, ge=0)
    file: PathBeside | None = None
    fold: int | None = Field(None, ge=0)  # of nnU-Net's splits_final.json

    @model_validator(mode="after")
    def _fold_is_of_a_file(self) -> Self:
        if self.fold is not None and self.file is None:
            raise ValueError("fold is of nnU-Net's splits_final.json: set file to it, or drop fold")
        return self


class ModelSettings(Settings):
    """A registered network and its overrides."""

    name: str = "rwkv_unet_tiny"
    overrides: dict[str, Any] = Field(default_factory=dict)
    encoder_weights: PathBeside | None = None  # to start from
    freeze_encoder: bool = False  # neither weights nor batch statistics of the encoder change

    @field_validator("name")
    @classmethod
    def _name_is_registered(cls, name: str) -> str:
        if name not in list_models():
            raise ValueError(f"known networks are {', '.join(list_models())}")
        return name

    @field_validator("overrides")
    @classmethod
    def _channels_are_not_overridden(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        if overrides.keys() & {"in_channels", "num_classes"}:
            raise ValueError("in_channels is preprocessing.channels, num_classes the number of labels")
        if overrides.keys() & {"encoder_weights", "features_only"}:
            raise ValueError("encoder_weights is a key of model itself; features alone cannot be trained")
        return overrides

    @model_validator(mode="after")
    def _only_trained_weights_are_frozen(self) -> Self:
        if self.freeze_encoder and self.encoder_weights is None:
            raise ValueError("freeze_encoder is set without encoder_weights: it would keep random weights")
        return self


class LossSettings(Settings):
    """Weights of the two loss terms (the paper: 0.5 and 0.5 to 1.0)."""

    cross_entropy: float = Field(0.5, ge=0)
    dice: float = Field(1.0, ge=0)
    batch_dice: bool = True  # overlaps summed over the batch, not a case at a time

    @model_validator(mode="after")
    def _something_to_minimise(self) -> Self:
        if self.cross_entropy + self.dice == 0:
            raise ValueError("cross_entropy and dice are both 0: give at least one a positive weight")
        return self


class OptimizerSettings(Settings):
    """Linear warm-up, then decay of the learning rate; no weight decay of vectors (norms, biases, decays)."""

    name: Literal["adamw", "sgd"] = "adamw"
    momentum: float = Field(0.99, ge=0, lt=1)  # of sgd, Nesterov's where it is not 0
    decay: Literal["cosine", "poly"] = "cosine"  # poly: (1 - progress) ** 0.9
    learning_rate: float = Field(1e-4, gt=0)
    min_learning_rate: float = Field(0.0, ge=0)
    weight_decay: float = Field(1e-2, ge=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["epoch", "step"] = "epoch"  # how often the decay moves on
    gradient_clip: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _rates_descend(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError("min_learning_rate must not exceed learning_rate")
        return self


class TrainingSettings(Settings):
    """Length, batches, precision and housekeeping of the training."""

    epochs: int = Field(300, gt=0)
    batch_size: int = Field(8, gt=0)  # over all devices together
    devices: int = Field(1, gt=0)  # GPUs; on a CPU processes
    steps_per_epoch: int | None = Field(None, gt=0)  # None: every training item once
    seed: int = Field(0, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA, float32 elsewhere
    validate_every: int = Field(1, gt=0)  # epochs
    checkpoint_every: int = Field(1, gt=0)  # epochs
    workers: Workers = "auto"  # for each device
    cache_gigabytes: float = Field(4.0, ge=0)  # preprocessed data of a part up to this size stays in memory
    foreground_fraction: float = Field(1 / 3, ge=0, le=1)  # of the patches of volumes, centred on a structure
    ema: float | None = Field(None, gt=0, lt=1)  # decay of a moving average of the weights: it is the result
    compile: bool = False
    cuda_graphs: bool = (
        True  # on one GPU where all images have one size: record the steps, launch them as one
    )
    report: Literal["last", "best"] = "last"  # which checkpoint is tested and exported

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.batch_size % self.devices:
            raise ValueError("batch_size must be a multiple of devices: it is shared out among them")
        return self

    @model_validator(mode="after")
    def _best_needs_a_validation(self) -> Self:
        if self.report == "best" and self.validate_every > self.epochs:
            raise ValueError("report is 'best', but validate_every exceeds epochs: nothing is validated")
        return self


class Recipe(RecipeFile):
    """Everything that a run needs to be repeated, apart from the data itself."""

    data: DataSettings = DataSettings()
    split: SplitSettings = SplitSettings()
    preprocessing: Preprocessing = Preprocessing()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    training: TrainingSettings = TrainingSettings()
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _augmentation_fits_the_dimensions(self) -> Self:
        settings = self.augmentation
        if self.preprocessing.dimensions == 3 and settings.elastic:
            raise ValueError(
                "augmentation.elastic is of pictures, preprocessing.dimensions is 3: set it to 0"
            )
        if self.preprocessing.dimensions == 2 and (
            settings.flip_slices or settings.through_plane is not None
        ):
            raise ValueError("augmentation.flip_slices and through_plane are of volumes: drop them")
        return self
