"""A recipe of a pre-training: which pictures, which encoder, which task, how long."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rwkvseg.data.pretraining import PictureSettings
from rwkvseg.models.rwkv_unet import STRIDE
from rwkvseg.training.recipe import ModelSettings, OptimizerSettings
from rwkvseg.training.recipe_file import PathBeside, RecipeFile, Settings, Workers


class PictureSource(Settings):
    """Pictures without labels: the training part of a segmentation recipe, or those of a plain folder."""

    path: Path | None = None  # data folder; None: data.path
    recipe: PathBeside | None = None  # segmentation recipe: its training part, nothing else
    changes: tuple[str, ...] = ()  # to that recipe, as `rwkvseg train --set` takes them
    list: PathBeside | None = None  # of a plain folder: text file of paths below it
    held_out_only: bool = False  # of a recipe: take no picture, only guard its validation and test parts

    @model_validator(mode="after")
    def _keys_fit_together(self) -> Self:
        if self.recipe is None and (self.changes or self.held_out_only):
            raise ValueError("changes and held_out_only need a recipe")
        if self.recipe is not None and self.list is not None:
            raise ValueError(
                "a list is for a plain folder; a recipe already says which pictures it trains on"
            )
        return self


class PretrainDataSettings(Settings):
    """The ImageFolder tree to classify, or the sources of pictures to reconstruct."""

    path: Path | None = None  # `--data` wins
    sources: dict[str, PictureSource] = Field(default_factory=dict)
    licence: str = "not stated"
    citation: str = ""


class PretrainTrainingSettings(Settings):
    """Length, batches, precision and housekeeping."""

    epochs: int = Field(300, gt=0)
    batch_size: int = Field(1024, gt=0)  # over all devices together
    steps_per_epoch: int | None = Field(None, gt=0)  # None: every picture once, but for an incomplete batch
    devices: int = Field(1, gt=0)  # GPUs; on a CPU processes
    seed: int = Field(0, ge=0)
    ema: float | None = Field(None, gt=0, lt=1)  # decay of the moving average of the weights; None: none
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    validate_every: int = Field(1, gt=0)  # epochs
    checkpoint_every: int = Field(1, gt=0)  # epochs
    workers: Workers = "auto"  # for each device
    compile: bool = False
    cuda_graphs: bool = True  # on one GPU: record the network's steps, launch them as one

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.batch_size % self.devices or self.batch_size < 2 * self.devices:
            raise ValueError("batch_size must be a multiple of devices, with at least 2 pictures for each")
        return self


class ClassifySettings(Settings):
    """Classification with labels."""

    label_smoothing: float = Field(0.1, ge=0, lt=1)


class MaskedSettings(Settings):
    """Reconstruction of hidden patches, without labels."""

    patch: int = Field(32, ge=1)  # side of a patch in pixels
    ratio: float = Field(0.6, gt=0, lt=1)  # share of the patches that is hidden


class PretrainRecipe(RecipeFile):
    """Everything that a pre-training needs to be repeated, apart from the pictures themselves."""

    task: Literal["classify", "masked"] = "classify"
    data: PretrainDataSettings = PretrainDataSettings()
    model: ModelSettings = ModelSettings()
    pictures: PictureSettings = PictureSettings()
    classify: ClassifySettings = ClassifySettings()
    masked: MaskedSettings = MaskedSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    training: PretrainTrainingSettings = PretrainTrainingSettings()

    @field_validator("model")
    @classmethod
    def _weights_are_fresh(cls, model: ModelSettings) -> ModelSettings:
        if model.encoder_weights is not None:
            raise ValueError(
                "a pre-training starts from fresh weights; encoder_weights is for the training that follows"
            )
        return model

    @field_validator("pictures")
    @classmethod
    def _size_fits_the_encoder(cls, pictures: PictureSettings) -> PictureSettings:
        if pictures.size % STRIDE:
            raise ValueError(f"size must be a multiple of {STRIDE}")
        return pictures

    @model_validator(mode="after")
    def _sources_fit_the_task(self) -> Self:
        sources = self.data.sources.values()
        if self.task == "classify" and sources:
            raise ValueError("data.sources are for task 'masked'; to classify, set data.path")
        if self.task == "masked" and all(source.held_out_only for source in sources):
            raise ValueError("task 'masked' needs a data source with pictures in data.sources")
        return self
