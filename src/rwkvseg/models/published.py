"""The authors' published RWKV-UNet weights: their names to ours, strictly.

The authors' repository carries no licence, so no weight of theirs is shipped: this reads the user's download.
Both generations of their files fit (before and after the rewrite of their blocks in 2025). What a file holds
beyond the segmentation network is dropped by the names listed here; any other unknown name is refused.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from rwkvseg.errors import ModelFileError
from rwkvseg.models.rwkv_unet import BASE, SMALL, TINY
from rwkvseg.wording import counted

_VARIANTS = {"tiny": TINY, "small": SMALL, "base": BASE}

_AFFINE = ("weight", "bias")
_BATCH_NORM = (*_AFFINE, "running_mean", "running_var", "num_batches_tracked")


def _each(leaves: tuple[str, ...], names: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}.{leaf}": f"{ours}.{leaf}" for theirs, ours in names.items() for leaf in leaves}


_BLOCK = {  # every block of the encoder
    "conv.conv.weight": "expand.conv.weight",
    "conv_local.conv.weight": "local.conv.weight",
    "proj.conv.weight": "project.weight",
    **_each(_BATCH_NORM, {"conv.norm": "expand.norm", "conv_local.norm": "local.norm"}),
}
_STEM = _each(_AFFINE, {f"se.conv_{part}": f"squeeze_excite.{part}" for part in ("reduce", "expand")})
_EARLY_NORM = _each(_BATCH_NORM, {"norm": "norm"})  # stages 1 and 2
_LATE_NORM = _each(_AFFINE, {"norm.norm": "norm"})  # stages 3 and 4
_MIXER = {  # used from the second block of stages 3 and 4 on; elsewhere present in some files, and dead
    "att.spatial_decay": "mixer.decay",
    "att.spatial_first": "mixer.bonus",
    **{f"att.spatial_mix_{part}": f"mixer.mix_{part}" for part in "kvr"},
    **{f"att.{part}.weight": f"mixer.{part}.weight" for part in ("key", "value", "receptance", "output")},
    **_each(_AFFINE, {"att.key_norm": "mixer.norm", "ln1": "mixer_norm"}),
}
_DECODER = {
    f"{theirs}.{leaf}": f"{ours}.{leaf}"
    for theirs, ours in {"conv": "expand", "conv_local": "local", "proj": "project"}.items()
    for leaf in ("conv.weight", *(f"norm.{leaf}" for leaf in _BATCH_NORM))
}
_REST = {
    **_each(_AFFINE, {"final_conv": "head", "ccm.ln1": "ccm.norm"}),
    # the published lists run from the coarsest map to the finest, ours the other way
    **_each(_AFFINE, {f"ccm.projections.{i}": f"ccm.project_in.{2 - i}" for i in range(3)}),
    **_each(_AFFINE, {f"ccm.final_projections.{i}": f"ccm.project_out.{2 - i}" for i in range(3)}),
    **_each(_AFFINE, {"ccm.channel.key_norm": "ccm.channel_mix.norm"}),
    **{f"ccm.channel.{p}.weight": f"ccm.channel_mix.{p}.weight" for p in ("key", "receptance", "value")},
    **{f"ccm.channel.spatial_mix_{part}": f"ccm.channel_mix.mix_{part}" for part in "kr"},
    **{
        f"decoder{number + 1}.{theirs}": f"decoder.blocks.{number}.{ours}"
        for number in range(4)
        for theirs, ours in _DECODER.items()
    },
}
_DEAD = {
    *_each(_AFFINE, {"encoder.norm.norm": "", "encoder.head": ""}),
    *_each(_AFFINE, {f"decoder{number}.ln1": "" for number in range(1, 5)}),
}
_DEAD_IN_BLOCK = {f"ln2.{leaf}" for leaf in _AFFINE}
_BLOCK_NAME = re.compile(r"encoder\.stage(0(?=\.0\.)|[1-4])\.([0-5])\.(.+)")  # the stem is one block


def convert_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename the entries of a published RWKV-UNet state dict to ours, for a strict load.

    Takes both generations of the published files, with or without the `module.` that DataParallel adds.
    Entries that the published network never uses are dropped: second norms, mixers of blocks without one, the
    ImageNet head. Tensors are shared with the input, not copied; mixing shares (1, 1, C) become (C,).

    Args:
        state_dict: published name -> tensor, as `torch.load(path, weights_only=True)` gives it.

    Returns:
        Our name -> tensor.

    Raises:
        ModelFileError: a name that no published network has, a value that is no tensor, an encoder alone.
    """
    state_dict = _without_prefix(state_dict)
    if is_encoder_alone(state_dict):
        raise ModelFileError(
            "the file holds an encoder alone, as pre-trained on ImageNet. "
            "Give the weights of a whole segmentation network, or train from this one by encoder_weights."
        )
    return _convert(state_dict)


def is_encoder_alone(state_dict: Mapping[str, Any]) -> bool:
    """Whether these are the authors' names of an encoder without decoder (an ImageNet classifier)."""
    return any(name.startswith("stage") for name in _without_prefix(state_dict))


def convert_encoder(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename a published encoder, or the encoder of a published segmentation network, to our `Encoder`'s.

    The ImageNet head and the norm before it are dropped. Both generations, with or without `module.`.

    Raises:
        ModelFileError: a name that no published network has, or a value that is no tensor.
    """
    named = _without_prefix(state_dict)
    if is_encoder_alone(named):
        named = {f"encoder.{name}": value for name, value in named.items()}
    converted = _convert(named)
    return {
        name.removeprefix("encoder."): value
        for name, value in converted.items()
        if name.startswith("encoder.")
    }


def _convert(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    names = _names(state_dict)
    unknown = [name for name in state_dict if name not in names]
    converted = {
        ours: _tensor(theirs, state_dict) for theirs, ours in names.items() if theirs in state_dict and ours
    }
    if unknown or not converted:
        what = f"has entries of no published RWKV-UNet: {_some(unknown)}" if unknown else "is empty"
        raise ModelFileError(
            f"the state dict {what}. Give the state dict itself, as the authors' training script saves it."
        )
    return converted


def load_published(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load a published state dict into a network of `create_model("rwkv_unet_...")`, all of it or nothing.

    Raises:
        ModelFileError: the file is another variant or number of classes, or entries are missing or foreign.
    """
    converted = convert_state_dict(state_dict)
    expected = model.state_dict()
    _check_kind(converted, expected)
    check_fit(converted, expected)
    model.load_state_dict(converted, strict=True)


def check_fit(converted: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Name the entries that keep `converted` from being loaded where `expected` stands.

    Raises:
        ModelFileError: entries are missing, foreign or of another shape.
    """
    missing = [name for name in expected if name not in converted]
    foreign = [name for name in converted if name not in expected]
    differing = [
        f"{name} {tuple(converted[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in converted and converted[name].shape != value.shape
    ]
    faults = {"lacks": missing, "has in addition": foreign, "has with another shape": differing}
    found = [f"{verb} {_some(names)}" for verb, names in faults.items() if names]
    if found:
        raise ModelFileError(
            f"the weights do not fit this model: the file {'; it '.join(found)}. "
            "Create the variant that the file was saved from (tiny, small or base), or download it again."
        )


def _without_prefix(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    named = {str(name): value for name, value in state_dict.items()}
    prefix = "module." if all(name.startswith("module.") for name in named) else ""
    return {name.removeprefix(prefix): value for name, value in named.items()}


def _names(state_dict: Mapping[str, Any]) -> dict[str, str | None]:
    """All names of a published network with the blocks of `state_dict` -> ours, None where never used."""
    names: dict[str, str | None] = {**_REST, **dict.fromkeys(_DEAD)}
    found = filter(None, map(_BLOCK_NAME.fullmatch, state_dict))
    for stage, index in sorted({(int(match[1]), int(match[2])) for match in found if match[3] in _BLOCK}):
        live = {**_BLOCK, **(_STEM if stage == 0 else _EARLY_NORM if stage <= 2 else _LATE_NORM)}
        dead = set(_DEAD_IN_BLOCK)
        if stage >= 3 and index >= 1:
            live |= _MIXER
        else:
            dead |= _MIXER.keys()
        ours = f"encoder.stages.{stage - 1}.{index}" if stage else "encoder.stem"
        names |= {f"encoder.stage{stage}.{index}.{tail}": f"{ours}.{name}" for tail, name in live.items()}
        names |= {f"encoder.stage{stage}.{index}.{tail}": None for tail in dead}
    return names


def _tensor(name: str, state_dict: Mapping[str, Any]) -> Tensor:
    value = state_dict[name]
    if not isinstance(value, Tensor):
        raise ModelFileError(
            f"entry {name} is a {type(value).__name__}, not a tensor. Download the file again."
        )
    is_share = "spatial_mix" in name and value.ndim == 3 and value.shape[:2] == (1, 1)
    return value.flatten() if is_share else value


def _check_kind(converted: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse another variant or number of classes in its own words, before single entries are compared."""
    found, wanted = (variant_of(state) for state in (converted, expected))
    if found is not None and found != wanted:
        raise ModelFileError(
            f"the file holds {found}, the model is {wanted or 'none of the published ones'}. "
            f'Create it with create_model("{found}"), or give --variant {found.removeprefix("rwkv_unet_")}.'
        )
    classes, num_classes = (_rows(state, "head.weight") for state in (converted, expected))
    if 0 not in (classes, num_classes) and classes != num_classes:
        raise ModelFileError(
            f"the published weights are for {counted(classes, 'class', 'classes')}, the model has "
            f"{num_classes}. Create it with num_classes={classes}, or give --num-classes {classes}."
        )


def variant_of(state: Mapping[str, Tensor], prefix: str = "encoder.") -> str | None:
    """Registered name of the published variant with these widths of the stages, in our names."""
    widths = tuple(_rows(state, f"{prefix}stages.{stage}.0.project.weight") for stage in range(4))
    return {config.widths: f"rwkv_unet_{name}" for name, config in _VARIANTS.items()}.get(widths)


def num_classes_of(state: Mapping[str, Tensor]) -> int:
    """Classes of a published segmentation file; 0 if it has no head."""
    return _rows(_without_prefix(state), "final_conv.weight")


def _rows(state: Mapping[str, Tensor], name: str) -> int:
    return state[name].shape[0] if name in state and state[name].ndim else 0


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more} ({len(names)} in all)"
