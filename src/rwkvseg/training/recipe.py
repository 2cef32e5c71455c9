"""A recipe describes a whole run: data, split, preprocessing, network, loss, optimisation, augmentation.

It is read from YAML, checked once, and written unchanged into the run folder.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rwkvseg.data.transforms import Augmentation, Preprocessing
from rwkvseg.errors import RecipeError
from rwkvseg.models.registry import list_models

Positive = Field(gt=0)
Settings = TypeVar("Settings", bound=BaseModel)


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class DataSettings(_Settings):
    """Which data the run uses; `path` may be left to `--data`."""

    path: Path | None = None
    layout: Literal["auto", "images", "nnunet", "msd"] = "auto"
    labels: dict[str, int] | None = None  # name -> value; None: as the data folder says
    licence: str = "not stated"
    citation: str = ""

    @field_validator("labels")
    @classmethod
    def _labels_count_up_from_background(cls, labels: dict[str, int] | None) -> dict[str, int] | None:
        if labels is not None and sorted(labels.values()) != list(range(len(labels))):
            raise ValueError("values must be 0 (background), 1, 2, ... without gaps")
        if labels is not None and len(labels) < 2:
            raise ValueError("at least background and one structure are needed")
        return labels


class SplitSettings(_Settings):
    """How cases are dealt into train, val and test; a `file` wins over the rule."""

    rule: Literal["paper", "grouped", "official"] = "paper"
    seed: int = Field(0, ge=0)
    file: Path | None = None  # relative to the recipe


class ModelSettings(_Settings):
    """A registered network and its overrides."""

    name: str = "rwkv_unet_tiny"
    overrides: dict[str, Any] = {}
    encoder_weights: Path | None = None  # to start from; relative to the recipe
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


class LossSettings(_Settings):
    """Weights of the two loss terms (the paper: 0.5 and 0.5 to 1.0)."""

    cross_entropy: float = Field(0.5, ge=0)
    dice: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _something_to_minimise(self) -> Self:
        if self.cross_entropy + self.dice == 0:
            raise ValueError("cross_entropy and dice are both 0: give at least one a positive weight")
        return self


class OptimizerSettings(_Settings):
    """AdamW with linear warm-up and cosine decay; vectors (norms, biases, decays) are not decayed."""

    learning_rate: float = Field(1e-4, gt=0)
    min_learning_rate: float = Field(0.0, ge=0)
    weight_decay: float = Field(1e-2, ge=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["epoch", "step"] = "epoch"  # how often the cosine moves on
    gradient_clip: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _rates_descend(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError("min_learning_rate must not exceed learning_rate")
        return self


class TrainingSettings(_Settings):
    """Length, batches, precision and housekeeping of the training."""

    epochs: int = Field(300, gt=0)
    batch_size: int = Field(8, gt=0)
    steps_per_epoch: int | None = Field(None, gt=0)  # None: every training item once
    seed: int = Field(0, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA, float32 elsewhere
    validate_every: int = Field(1, gt=0)  # epochs
    checkpoint_every: int = Field(1, gt=0)  # epochs
    workers: int | Literal["auto"] = "auto"
    cache_gigabytes: float = Field(4.0, ge=0)  # preprocessed data up to this size stays in memory
    compile: bool = False
    report: Literal["last", "best"] = "last"  # which checkpoint is tested and exported

    @field_validator("workers")
    @classmethod
    def _workers_not_negative(cls, workers: int | str) -> int | str:
        if isinstance(workers, int) and workers < 0:
            raise ValueError("must be 0 or more, or 'auto'")
        return workers

    @model_validator(mode="after")
    def _best_needs_a_validation(self) -> Self:
        if self.report == "best" and self.validate_every > self.epochs:
            raise ValueError("report is 'best', but validate_every exceeds epochs: nothing is validated")
        return self


class Recipe(_Settings):
    """Everything that a run needs to be repeated, apart from the data itself."""

    name: str = Field(pattern=r"^[\w.-]+$")
    description: str = ""
    data: DataSettings = DataSettings()
    split: SplitSettings = SplitSettings()
    preprocessing: Preprocessing = Preprocessing()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    training: TrainingSettings = TrainingSettings()
    augmentation: Augmentation = Augmentation()

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any], *, source: str = "recipe") -> Self:
        """Check `content`.

        Raises:
            RecipeError: names every bad key with its value and what is allowed.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise RecipeError(_explain(error, source, cls)) from error

    @classmethod
    def from_file(cls, path: Path, *, changes: Iterable[str] = ()) -> Self:
        """Read a YAML recipe; `changes` are `key.sub=value` strings that win over the file.

        Relative paths (`split.file`, `model.encoder_weights`) are taken relative to the recipe's folder and
        made absolute, so that the copy in the run folder still finds them.

        Raises:
            RecipeError: no such file, not YAML, or a bad key or value.
        """
        content = _read_yaml(path)
        for change in changes:
            _apply_change(content, change)
        recipe = cls.from_mapping(content, source=str(path))
        return recipe.model_copy(
            update={
                "split": _resolve(recipe.split, "file", path.parent),
                "model": _resolve(recipe.model, "encoder_weights", path.parent),
            }
        )

    def to_yaml(self) -> str:
        """Text of the recipe; `from_file` of it gives an equal recipe."""
        content = self.model_dump(mode="json")
        text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        if yaml.safe_load(text) != content:  # PyYAML writes some line separators as they are and reads spaces
            text = yaml.safe_dump(content, sort_keys=False)
        return text


def _resolve(settings: Settings, key: str, folder: Path) -> Settings:
    file = getattr(settings, key)
    if file is None or file.is_absolute():
        return settings
    return settings.model_copy(update={key: (folder / file).resolve()})


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}. Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"the recipe {path} is not valid YAML: {_one_line(error)}. Mend that line."
        ) from error
    if not isinstance(content, dict):
        raise RecipeError(f"the recipe {path} holds no keys. Start from one in recipes/.")
    return content


def _apply_change(content: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {change} has no value. Write it as key=value, such as training.epochs=10.")
    *groups, leaf = key.strip().split(".")
    place = content
    for group in groups:
        if place.get(group) is None:
            place[group] = {}
        place = place[group]
        if not isinstance(place, dict):
            raise RecipeError(
                f"--set {change}: '{group}' is a value, not a group of keys. Drop what follows it."
            )
    try:
        place[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {change}: the value is not valid YAML. Quote it.") from error


def _explain(error: ValidationError, source: str, recipe: type[BaseModel]) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = ", ".join(_known_keys(recipe, item["loc"][:-1]))
            lines.append(f"unknown key '{key}'; known here: {known}")
        elif item["type"] == "missing":
            lines.append(f"key '{key}' is missing")
        else:
            lines.append(f"{key} = {item['input']!r}: {item['msg'].removeprefix('Value error, ')}")
    return f"{source} cannot be used: {'; '.join(lines)}. Change these keys and start again."


def _known_keys(model: type[BaseModel], groups: tuple[int | str, ...]) -> list[str]:
    for group in groups:
        annotation = model.model_fields[str(group)].annotation if str(group) in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
