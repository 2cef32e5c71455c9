"""Every error that rwkvseg raises on purpose.

Each message says in one sentence what is wrong, with the numbers, and in one more how to mend it.

    RWKVSegError                 exit code 1
    ├── UsageError               exit code 2: an argument of a command or call cannot be meant
    │   └── RecipeError          a key or value of a recipe
    ├── ShapeError               tensors whose shapes do not fit (also a ValueError)
    ├── BackendError             an implementation of an operator that cannot run here
    ├── MissingExtraError        an optional dependency is not installed (also an ImportError)
    ├── DataError                a file or folder of images
    │   ├── UnreadableFileError  cannot be decoded: truncated, damaged, another format
    │   ├── LabelError           values of a label map
    │   └── GeometryError        size, spacing or affine of image and label disagree
    ├── ModelFileError           a model file or checkpoint that is missing, altered or foreign
    └── OutputError              a result cannot be written
"""


class RWKVSegError(Exception):
    """Base of all errors of this package; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(RWKVSegError):
    """An argument that cannot be meant."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe with an unknown key or a value that is not allowed."""


class ShapeError(RWKVSegError, ValueError):
    """Tensors or arrays whose shapes do not fit together."""


class BackendError(RWKVSegError):
    """An explicitly chosen implementation of an operator that cannot run here."""


class MissingExtraError(RWKVSegError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class DataError(RWKVSegError):
    """A file or folder of images that cannot be used."""


class UnreadableFileError(DataError):
    """A file that cannot be decoded."""


class LabelError(DataError):
    """A label map with values that the labels do not allow."""


class GeometryError(DataError):
    """Image and label whose size, spacing or affine disagree."""


class ModelFileError(RWKVSegError):
    """A model file or checkpoint that is missing, altered or foreign."""


class TrainingError(RWKVSegError):
    """A training that cannot go on as it is."""


class OutputError(RWKVSegError):
    """A result that cannot be written."""


def one_line(error: Exception, limit: int = 300) -> str:
    r"""What an error of another library says, on one line and not longer than `limit`; else its type.

    Example:
        >>> one_line(ValueError("two\nlines.")), one_line(EOFError())
        ('two lines', 'EOFError')
    """
    text = " ".join(str(error).split()).rstrip(". ") or type(error).__name__
    return text if len(text) <= limit else text[:limit].rstrip(". ") + " ..."
