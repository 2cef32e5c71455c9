"""What a plan consists of: a value for a key of the recipe, and the reason for it in one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rwkvseg.data.case_facts import CaseFacts
from rwkvseg.data.fingerprint import Fingerprint
from rwkvseg.data.splits import Split


@dataclass(frozen=True, slots=True)
class Choice:
    """One key of the recipe, such as `training.batch_size`."""

    key: str
    value: Any
    """As YAML holds it: numbers, strings, lists, mappings."""
    why: str = ""
    """A clause that ends in a full stop; empty where a key goes with the one before it."""

    @property
    def sentence(self) -> str:
        """The reason with a capital letter."""
        return self.why[:1].upper() + self.why[1:]


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Choices that are the user's."""

    memory: int
    """Bytes of the GPU."""
    dimensions: int | None = None
    """2 or 3; None: as the data asks for."""
    variant: str | None = None
    """Such as "small"; None: tiny."""
    seed: int = 0
    """Of the split and of the training."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the rules look at."""

    found: Fingerprint
    labels: dict[str, int]
    split: Split
    options: PlanOptions

    @property
    def training(self) -> Sequence[CaseFacts]:
        """The cases to train on: sizes and spacings are taken from no other."""
        chosen = set(self.split.train)
        return [case for case in self.found.cases if case.id in chosen]

    @property
    def channels(self) -> int:
        """Of the network's input: the most that a case has."""
        return max(case.channels for case in self.found.cases)


def nested(choices: Sequence[Choice]) -> dict[str, Any]:
    """The recipe as a mapping.

    >>> nested([Choice("name", "a"), Choice("training.epochs", 3), Choice("training.seed", 0)])
    {'name': 'a', 'training': {'epochs': 3, 'seed': 0}}
    """
    content: dict[str, Any] = {}
    for choice in choices:
        *groups, leaf = choice.key.split(".")
        place = content
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = choice.value
    return content
