"""The errors of the project. A message says what arrived, what was expected and what to do.

Each class also derives from the builtin exception that fits: ShapeError is a ValueError, DtypeError a TypeError. The
command line exits with its `exit_code`: 1 a failed check, 2 usage, 3 bad file, 4 input or output.
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
    """The tape was freed, never recorded, or is in use by another thread; or a trainer does not fit its model."""


class InPlaceError(GraphError):
    """An op's forward or rule wrote into an array that it was given, which is the caller's or another op's."""


class NonFiniteError(NanogradError, ArithmeticError):
    """A NaN or infinity where only finite numbers are allowed."""

    exit_code = 1


class WorkerError(NanogradError, RuntimeError):
    """A worker process was killed or stopped, or could not be started."""

    exit_code = 1


class DeviceError(NanogradError, RuntimeError):
    """A GPU cannot be used or has no memory left, or an operation got arrays on two devices."""


class ConfigError(NanogradError, ValueError):
    """A setting that is not allowed; the message names the field, its value and what is allowed."""


class BadFileError(NanogradError, ValueError):
    """A file whose content is damaged or not of the expected form."""

    exit_code = 3


class StorageError(NanogradError, OSError):
    """A file or folder is missing, cannot be written or is in use by another run, or the disk is full."""

    exit_code = 4
