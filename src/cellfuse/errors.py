"""Every error cellfuse raises on purpose. Each message says what was given, what is expected, what to write.

CellfuseError
├── CellError        a cell's facts do not fit together, or no cell has that name   (ValueError)
│   └── TraceError   the cell's function did something that cannot be traced
├── ShapeError       a size disagrees                                             (RuntimeError)
├── InputError       wrong number of dimensions, dtype or kind of argument          (ValueError)
├── OptionError      an option of the right type with a value that is not allowed   (ValueError)
├── OptionTypeError  an option of the wrong type                                     (TypeError)
├── BackendError     a backend was asked for by name and cannot run this case     (RuntimeError)
├── ConvertError     a module cannot be converted                                    (TypeError)
└── TaskError        a training task, its data or a checkpoint cannot be used       (ValueError)

The second base of each class is the type torch.nn raises for the same mistake, so that code which
catches torch's error catches ours.
"""


class CellfuseError(Exception):
    """Base class: catch this to catch all of ours."""


class CellError(CellfuseError, ValueError):
    """A cell's facts do not fit together, or no cell has that name."""


class TraceError(CellError):
    """The cell's function did something that cannot be traced."""


class ShapeError(CellfuseError, RuntimeError):
    """A size disagrees."""


class InputError(CellfuseError, ValueError):
    """Wrong number of dimensions, wrong dtype or wrong kind of argument."""


class OptionError(CellfuseError, ValueError):
    """An option of the right type with a value that is not allowed."""


class OptionTypeError(CellfuseError, TypeError):
    """An option of the wrong type."""


class BackendError(CellfuseError, RuntimeError):
    """A backend was asked for by name and cannot run this case."""


class ConvertError(CellfuseError, TypeError):
    """A module cannot be converted."""


class TaskError(CellfuseError, ValueError):
    """A training task, its data or a checkpoint cannot be used."""
