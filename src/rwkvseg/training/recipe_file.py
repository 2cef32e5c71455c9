"""YAML files that describe a whole run: read strictly, explained when wrong, written back unchanged."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from rwkvseg.errors import RecipeError, one_line


def _not_negative(workers: int | str) -> int | str:
    if isinstance(workers, int) and workers < 0:
        raise ValueError("must be 0 or more, or 'auto'")
    return workers


YAML_FAULTS = (yaml.YAMLError, ValueError, RecursionError)
"""What PyYAML raises: ValueError for dates and numbers that are none, and text that is not UTF-8."""

_MOST_VALUES = 20_000


def _from_the_recipes_folder(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    return path if folder is None or path.is_absolute() else (folder / path).resolve()


PathBeside = Annotated[Path, AfterValidator(_from_the_recipes_folder)]
"""Of a file that comes with a recipe: `RecipeFile.from_file` takes it relative to the recipe's folder."""

Workers = Annotated[int | Literal["auto"], AfterValidator(_not_negative)]


class Settings(BaseModel):
    """A group of keys; none beyond the declared ones, none changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class RecipeFile(Settings):
    """What every kind of recipe begins with, and how it is read and written."""

    name: str = Field(pattern=r"^[\w.-]+$")
    description: str = ""

    @classmethod
    def from_mapping(
        cls, content: Mapping[str, Any], *, source: str = "recipe", folder: Path | None = None
    ) -> Self:
        """Check `content`, whose relative paths of files that come with it start from `folder`.

        Raises:
            RecipeError: names every bad key with its value and what is allowed.
        """
        try:
            return cls.model_validate(content, context={"folder": folder})
        except ValidationError as error:
            raise RecipeError(_explain(error, source, cls)) from error

    @classmethod
    def from_file(cls, path: Path, *, changes: Iterable[str] = ()) -> Self:
        """Read a YAML recipe; `changes` are `key.sub=value` strings that win over the file.

        Relative paths of files that come with a recipe are taken relative to its folder and made absolute,
        so that the copy in the run folder still finds them.

        Raises:
            RecipeError: no such file, not YAML, or a bad key or value.
        """
        content = _read_yaml(path)
        for change in changes:
            _apply_change(content, change)
        return cls.from_mapping(content, source=str(path), folder=path.parent)

    def to_yaml(self) -> str:
        """Text of the recipe; `from_file` of it gives an equal recipe."""
        content = self.model_dump(mode="json")
        text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        if yaml.safe_load(text) != content:  # PyYAML writes some line separators as they are and reads spaces
            text = yaml.safe_dump(content, sort_keys=False)
        return text


class _EachKeyOnce(yaml.SafeLoader):
    """Refuses what YAML forbids and PyYAML lets pass: the later of two equal keys would win silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(None, None, f"the key {key.value} again", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _EachKeyOnce)
    except UnicodeDecodeError as error:
        raise RecipeError(f"the recipe {path} is no UTF-8 text. Save it as UTF-8.") from error
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}. Check the path.") from error
    except YAML_FAULTS as error:
        raise RecipeError(
            f"the recipe {path} is not valid YAML: {one_line(error)}. Mend that line."
        ) from error
    if not isinstance(content, dict):
        raise RecipeError(f"the recipe {path} holds no keys. Start from one in recipes/.")
    if _is_bomb(content):
        raise RecipeError(
            f"the recipe {path} holds more than {_MOST_VALUES} values, or some that hold themselves. "
            "Write out what its aliases (*name) stand for."
        )
    return content


def _is_bomb(content: Any) -> bool:
    """Whether aliases make more values than any recipe has; YAML shares them, printing does not."""
    waiting, seen = [content], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES:
            return True
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple, set)):
            waiting += value
    return False


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
    except YAML_FAULTS as error:
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
            lines.append(f"{key} = {_short(item['input'])}: {item['msg'].removeprefix('Value error, ')}")
    return f"{source} cannot be used: {'; '.join(lines)}. Change these keys and start again."


def _known_keys(model: type[BaseModel], groups: tuple[int | str, ...]) -> list[str]:
    inside: Any = model
    for group in groups:
        if get_origin(inside) is dict:  # a table of groups, whose names are free
            inside = get_args(inside)[1]
            continue
        fields = inside.model_fields if _is_group(inside) else {}
        inside = fields[str(group)].annotation if str(group) in fields else None
    return list(inside.model_fields) if _is_group(inside) else []


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _short(value: Any, limit: int = 120) -> str:
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= limit else text[:limit] + "..."
