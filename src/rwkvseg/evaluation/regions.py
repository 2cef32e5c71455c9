"""Regions: unions of classes, such as a whole tumour, that are scored beside the classes.

A region enters no mean over classes, since its parts are counted there already.
"""

from collections.abc import Iterable, Mapping, Sequence

from rwkvseg.errors import UsageError

Regions = Mapping[str, Sequence[str | int]]
"""Name of a region to the names or values of the labels that it joins."""


def parse_regions(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Read NAME=LABEL+LABEL, as on the command line.

    Raises:
        UsageError: another form, or two regions of one name.

    Example:
        >>> parse_regions(["whole=1+2+3", "core=1+necrosis"])
        {'whole': ('1', '2', '3'), 'core': ('1', 'necrosis')}
    """
    regions: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, joined = (part.strip() for part in text.partition("="))
        members = tuple(member.strip() for member in joined.split("+"))
        if not (name and equals and all(members)):
            raise UsageError(f"region {text!r} cannot be read. Write NAME=LABEL+LABEL, as whole=1+2+3.")
        if name in regions:
            raise UsageError(f"two regions are called {name!r}. Give each a name of its own.")
        regions[name] = members
    return regions


def resolve_regions(regions: Regions, labels: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Name of every region to its label values, ascending.

    Args:
        regions: each joins labels by their names, or by their values; a name wins over a value.
        labels: name to value.

    Raises:
        UsageError: a region without labels, with background or one that no label names, called like a label
            or the mean, or joining the same as another.

    Example:
        >>> resolve_regions({"whole": ["core", 1]}, {"background": 0, "oedema": 1, "core": 2})
        {'whole': (1, 2)}
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, members in regions.items():
        if name in labels or name == "mean":
            raise UsageError(f"region {name!r} is called like a row of the table. Give it another name.")
        joined = {structure_value(member, labels, f"region {name!r} joins {member!r}") for member in members}
        values = tuple(sorted(joined))
        if not values:
            raise UsageError(f"region {name!r} joins nothing. Name the labels that it joins.")
        same = next((other for other, known in found.items() if known == values), None)
        if same is not None:
            raise UsageError(f"regions {same!r} and {name!r} join the same labels. Leave one out.")
        found[name] = values
    return found


def structure_value(member: str | int, labels: Mapping[str, int], asked: str) -> int:
    """Value of a label that is not background, by its name or value; a name wins over a value.

    Args:
        member: name or value.
        labels: name to value.
        asked: what was asked for, as the error begins.

    Raises:
        UsageError: background, or no such label.
    """
    value = labels.get(str(member))
    if value is None and str(member).isdecimal() and int(member) in labels.values():
        value = int(member)
    if not value:
        known = ", ".join(f"{name} ({number})" for name, number in labels.items() if number)
        raise UsageError(f"{asked}, which is no structure; known are {known}. Name some of these.")
    return value
