"""A plan's choices as YAML with their reasons as comments."""

import textwrap
from collections.abc import Sequence
from typing import Any

import yaml

from rwkvseg.training.plan_choices import Choice, nested

WIDTH = 110


def recipe_text(choices: Sequence[Choice], heading: Sequence[str]) -> str:
    """YAML of the choices, group by group in their order; reading it gives `nested(choices)`."""
    lines = [line for sentence in heading for line in _comment(sentence, "")]
    for group, members in _groups(choices).items():
        if group:
            lines.append(f"{group}:")
        for choice in members:
            indent = "  " if group else ""
            lines += _comment(choice.sentence, indent)
            lines.append(indent + _entry(choice.key.rpartition(".")[2], choice.value))
    text = "\n".join(lines) + "\n"
    assert yaml.safe_load(text) == nested(choices)
    return text


def _groups(choices: Sequence[Choice]) -> dict[str, list[Choice]]:
    groups: dict[str, list[Choice]] = {}
    for choice in choices:
        groups.setdefault(choice.key.rpartition(".")[0], []).append(choice)
    return groups


def _comment(sentence: str, indent: str) -> list[str]:
    lead = f"{indent}# "
    plain = "".join(letter if letter.isprintable() else "?" for letter in " ".join(sentence.split()))
    return textwrap.wrap(plain, WIDTH, initial_indent=lead, subsequent_indent=lead) if plain else []


def _entry(key: str, value: Any) -> str:
    """`key: value` on one line, lists and mappings in flow style."""
    for readable in (True, False):  # PyYAML writes some line separators as they are and reads spaces
        dumped = yaml.safe_dump(
            {key: value}, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=readable
        )
        entry = dumped.strip()[1:-1]
        if yaml.safe_load(entry) == {key: value}:
            break
    return entry
