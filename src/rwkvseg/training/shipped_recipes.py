"""The recipes that come with rwkvseg: found by name, listed, and copied to be edited.

A wheel holds them in its own folder, see setup.py; a checkout has them in recipes/ at its root.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from rwkvseg.errors import RecipeError, UsageError
from rwkvseg.output import write_bytes

SUFFIXES = (".yaml", ".yml")
MOST_NEAR = 6


@dataclass(frozen=True, slots=True)
class ShippedRecipe:
    """What a list of recipes says of one."""

    name: str
    """By which commands take it: that of its file, without the suffix."""
    command: str
    """Which takes it: "train" or "pretrain"."""
    description: str
    model: str
    licence: str
    """Of the data."""
    citation: str
    """Of the data."""
    path: Path


def recipes_folder() -> Path:
    """Folder of the recipes of this installation.

    Raises:
        RecipeError: it has none.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        if (folder / "splits").is_dir():
            return folder
    raise RecipeError(
        f"the installation in {package} holds no recipes. Install rwkvseg anew, or give the path of a recipe."
    )


def list_recipes() -> dict[str, ShippedRecipe]:
    """Every recipe by its name, those of the papers' studies included.

    Raises:
        RecipeError: this installation has none.
    """
    found = {name: _describe(path) for name, path in sorted(_files().items())}
    return {name: recipe for name, recipe in found.items() if recipe is not None}


def _files() -> dict[str, Path]:
    return {path.stem: path for path in recipes_folder().rglob("*.yaml")}


def _describe(path: Path) -> ShippedRecipe | None:
    """What the file says of itself; None of one that lists the rows of a study."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, Mapping):
        return None
    data = content["data"]
    return ShippedRecipe(
        name=path.stem,
        command="pretrain" if "task" in content else "train",
        description=content["description"],
        model=content["model"]["name"],
        licence=data.get("licence", ""),
        citation=data.get("citation", ""),
        path=path,
    )


def find_recipe(wanted: Path | str) -> Path:
    """Path of a recipe: `wanted` itself where there is such a file, else of the one that has this name.

    What looks like a path (by its suffix or a folder before it) is returned as it is.

    Raises:
        RecipeError: no such name, and those that come near it are listed; or no such file, but such a name.

    >>> find_recipe("kvasir_seg_tiny").name
    'kvasir_seg_tiny.yaml'
    """
    path = Path(wanted)
    if path.is_file():
        return path
    if path.suffix in SUFFIXES or len(path.parts) != 1:
        if not path.exists() and path.stem in _files():
            raise RecipeError(f"there is no file {path}, but a recipe of that name: give {path.stem}.")
        return path
    return get_recipe(path.name).path


def get_recipe(name: str) -> ShippedRecipe:
    """Return the recipe of this name.

    Raises:
        RecipeError: there is none; those that come near it are listed.
    """
    path = _files().get(name)
    recipe = None if path is None else _describe(path)
    if recipe is not None:
        return recipe
    known = list_recipes()
    plain = name.casefold().removesuffix(".yaml").replace("-", "_")
    parts = [other for other in known if plain in other]
    near = list(dict.fromkeys([*get_close_matches(plain, known, n=3), *parts]))[:MOST_NEAR]
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise RecipeError(
        f"'{name}' is neither a file nor a recipe that comes with rwkvseg. {hint}"
        "`rwkvseg recipes` lists them; of your own recipe give the path."
    )


def copy_recipe(name: str, out: Path) -> list[Path]:
    """Write a copy of a recipe to edit, and beside it the files that it names; the paths, its own first.

    Comments stay; where the recipe names a file, the copy names that beside it.

    Args:
        name: of the recipe.
        out: the file, or a folder for `NAME.yaml`.

    Raises:
        RecipeError: no such recipe.
        UsageError: a file is there already and holds something else.
        OutputError: a file cannot be written.
    """
    target = out / f"{name}.yaml" if out.is_dir() else out
    files = dict(_copies(get_recipe(name).path, target))
    for path, content in files.items():
        if path.exists() and (path == target or path.read_bytes() != content):
            raise UsageError(f"{path} exists already. Choose another --out, or remove it.")
    for path, content in files.items():
        write_bytes(path, content)
    return list(files)


def _copies(path: Path, target: Path) -> Iterator[tuple[Path, bytes]]:
    """What is to be written where: the recipe as `target`, and all that it names beside that."""
    text = path.read_text(encoding="utf-8")
    named = [value for value in _texts(yaml.safe_load(text)) if (path.parent / value).is_file()]
    for value in named:
        text = text.replace(value, Path(value).name)
    yield target, text.encode()
    for value in named:
        source, beside = path.parent / value, target.with_name(Path(value).name)
        if beside == target:
            raise UsageError(f"the recipe names a file {beside.name} of its own. Choose another --out.")
        if source.suffix in SUFFIXES:
            yield from _copies(source, beside)
        else:
            yield beside, source.read_bytes()


def _texts(content: Any) -> Iterator[str]:
    """Every string among the values of nested mappings and lists, that could be a file's path."""
    if isinstance(content, Mapping):
        content = list(content.values())
    if isinstance(content, list):
        for value in content:
            yield from _texts(value)
    elif isinstance(content, str) and content.endswith((*SUFFIXES, ".json", ".txt")):
        yield content
