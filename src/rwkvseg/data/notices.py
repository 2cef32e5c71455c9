"""What a reader has to say beside its result, to the log."""

import logging
from functools import cache


@cache
def say_once(message: str) -> None:
    """Warn in the log `rwkvseg`, of the same thing once a process however often a file is read."""
    logging.getLogger("rwkvseg").warning(message)
