"""The command line: verbs, each a thin call.

Errors are one or two lines; exit codes are 0 ok, 1 failed, 2 wrong usage.
"""

import os
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer

from rwkvseg import __version__
from rwkvseg.cli.compare import compare
from rwkvseg.cli.data import data_app
from rwkvseg.cli.evaluate import evaluate
from rwkvseg.cli.figure import figure_app
from rwkvseg.cli.fingerprint import fingerprint
from rwkvseg.cli.models import convert_published, models
from rwkvseg.cli.plan import plan
from rwkvseg.cli.predict import predict
from rwkvseg.cli.recipes import recipes
from rwkvseg.cli.train import demo, pretrain, train
from rwkvseg.errors import RWKVSegError

app = typer.Typer(
    help="Medical image segmentation with linear-time global context.\n\n"
    "Add --debug to any command for tracebacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(figure_app, name="figure")
data_app.command()(fingerprint)
app.add_typer(data_app, name="data")


INTERRUPTED = 130  # what shells and typer make of Ctrl-C
COMMAND_LINE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]  # click's, or typer's copy of click


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rwkvseg {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for command in (train, pretrain, predict, evaluate, compare, plan, recipes, convert_published, models, demo):
    app.command()(command)


def main() -> None:
    """Run the program; the only place where errors become text and exit codes."""
    # threads that wait by spinning slow each other many times over when anything else runs on the machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        interrupted = app(prog_name="rwkvseg", standalone_mode=False) == INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        interrupted = True
    except RWKVSegError as error:
        if debug:
            traceback.print_exc()
        _fail(str(error), error.exit_code)
    except COMMAND_LINE_ERROR as error:
        _explain_usage(error)
    except Exception as error:
        if debug:
            traceback.print_exc()
        _fail(_explain_unexpected(error), 1)
    if interrupted:
        _fail("stopped. A training goes on with --resume, other commands begin again.", INTERRUPTED)


def _explain_usage(error: Any) -> NoReturn:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(error.exit_code)
    command = error.ctx.command_path if error.ctx else "rwkvseg"
    message = " ".join(error.format_message().split())  # a list of choices comes on lines of its own
    _fail(f"{message.rstrip('.')}. See `{command} --help`.", error.exit_code)


def _explain_unexpected(error: Exception) -> str:
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "the device ran out of memory. "
            "Lower training.batch_size or preprocessing.size, or use --device cpu."
        )
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return (
            "this machine's memory ran out. End other programs, or give smaller images or a larger machine."
        )
    first = (str(error).splitlines() or [""])[0]
    return (
        f"unexpected {type(error).__name__}: {first}\n"
        "This is a fault of rwkvseg: run again with --debug and report it."
    )


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)
