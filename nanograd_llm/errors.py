"""One way to fail: every error of the project says what arrived, what was expected and what to do.

Each class is also the builtin that a Python reader would expect (a shape is a ValueError, a dtype a TypeError), and
carries the exit code that the command line ends with: 1 a failed check, 2 usage, 3 bad file, 4 input or output.
"""

from __future__ import annotations


class NanogradError(Exception):
    """Base of every error that nanograd_llm raises on purpose."""

    exit_code = 2


class ShapeError(NanogradError, ValueError):
    """Shapes, axes or sizes that do not fit together."""


class DtypeError(NanogradError, TypeError):
    """A dtype or type that an operation cannot take."""


class SignatureError(NanogradError, TypeError):
    """A call with arguments that the op does not take."""


class IndexRangeError(NanogradError, IndexError):
    """A token id, class id or index outside its range."""


class GraphError(NanogradError, RuntimeError):
    """The tape was used in a way that has no meaning: freed, never recorded, or in use by another thread."""


class InPlaceError(GraphError):
    """An op's forward wrote into an array that it was given, which is the caller's or another op's."""


class NonFiniteError(NanogradError, ArithmeticError):
    """A NaN or infinity appeared where none may be."""

    exit_code = 1


class WorkerError(NanogradError, RuntimeError):
    """A worker process was killed or stopped, or could not be started."""

    exit_code = 1


class ConfigError(NanogradError, ValueError):
    """A setting that cannot be: names the field, its value and what would be allowed."""


class BadFileError(NanogradError, ValueError):
    """A file whose content is not what it should be."""

    exit_code = 3


class StorageError(NanogradError, OSError):
    """The file system refused: missing, unwritable, full, or in use by another run."""

    exit_code = 4
