"""`rwkvseg recipes`: those that come along, listed, shown, and copied to be edited."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rwkvseg.cli.console import say, show_table, widen
from rwkvseg.cli.options import JsonListOption
from rwkvseg.errors import UsageError
from rwkvseg.wording import counted

if TYPE_CHECKING:
    from rwkvseg.training.shipped_recipes import ShippedRecipe


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this one [default: list all].")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write a copy to edit, and what it names beside it.")
    ] = None,
    as_json: JsonListOption = False,
) -> None:
    """List the recipes that come with rwkvseg; train and pretrain take them by name.

    Examples:
        rwkvseg recipes

        rwkvseg recipes kvasir_seg_tiny_scratch

        rwkvseg recipes kvasir_seg_tiny_scratch -o mine.yaml
    """
    from rwkvseg.training.shipped_recipes import copy_recipe, get_recipe, list_recipes

    console = Console()
    found = list(list_recipes().values()) if name is None else [get_recipe(name)]
    if out is not None:
        if name is None:
            raise UsageError("--out is for the copy of one recipe. Give its name, or leave --out away.")
        for path in copy_recipe(name, out):
            say(console, f"written: {path}")
    elif as_json:
        typer.echo(json.dumps([_as_object(recipe) for recipe in found], indent=2))
    elif name is not None:
        typer.echo(found[0].path.read_text(encoding="utf-8"), nl=False)
    else:
        _print_list(console, found)


def _as_object(recipe: "ShippedRecipe") -> dict[str, str]:
    return {key: str(value) for key, value in asdict(recipe).items()}


def _print_list(console: Console, found: "list[ShippedRecipe]") -> None:
    widen(console, 200)
    headings = ["recipe", "model", "what it trains", "licence of the data"]
    rows = [[recipe.name, recipe.model, recipe.description, recipe.licence] for recipe in found]
    show_table(console, counted(len(rows), "recipe"), headings, rows, words=headings)
