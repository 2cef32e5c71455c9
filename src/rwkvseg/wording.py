"""Numbers of things in words."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """Say how many there are of something; `many` where an s at the end does not make it.

    >>> counted(1, "case"), counted(20, "case"), counted(1, "case differs", "cases differ")
    ('1 case', '20 cases', '1 case differs')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
