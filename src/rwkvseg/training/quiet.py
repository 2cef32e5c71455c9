"""What Lightning does around a training that a command line must not pass on."""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lightning.pytorch import Trainer


@contextmanager
def keyboard_interrupt_passes(trainer: Trainer) -> Iterator[None]:
    """Undo what Lightning does on Ctrl-C: it ignores further ones and exits with code 1."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as exit_of_lightning:
        if trainer.interrupted and isinstance(exit_of_lightning.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from exit_of_lightning
        raise
    finally:
        with suppress(ValueError, TypeError):  # another thread, or a handler that is not Python's
            signal.signal(signal.SIGINT, handler)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advice about workers, devices and logging intervals away from the user."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
