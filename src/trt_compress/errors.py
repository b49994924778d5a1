"""Every error this package raises on purpose.

TrtCompressError
├── ConfigError(ValueError)        the caller gave a bad value                              exit 2
├── ShapeError(ValueError)         a tensor does not fit the spec                           exit 2
├── UnsupportedError               legal, but not on this GPU / TensorRT / opset            exit 2
├── BundleError                    a bundle that cannot be read or written                  exit 2
├── StreamError                    a stream cannot go on; a stage's error keeps its code    exit 2
├── GateError                      a check that must hold did not: verify, preflight, …     exit 3
├── ExportError                    torch → ONNX; names the module path and node             exit 1
├── BuildError                     ONNX → engine; carries the TensorRT log lines            exit 1
├── PluginError                    a native library is missing, or does not fit here        exit 2
│   └── NativeError                it fails though it fits, or does not compile             exit 1
└── InternalError                  our bug; says how to report it                           exit 1
"""

_LONGEST = 4000  # characters of a message; what is cut out is in its middle


class TrtCompressError(Exception):
    """Base of all errors below.

    Attributes:
        exit_code: What the command line ends with.
        hint: What to do.
        report: What had been found by then, where there is something.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, report: object = None) -> None:
        if len(message) > _LONGEST:  # a value that was given, which may have any length
            message = f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.report = report

    def __str__(self) -> str:
        return f"{self.message}\nHint: {self.hint}" if self.hint else self.message


class ConfigError(TrtCompressError, ValueError):
    """The caller gave a bad value: an unknown name, a number out of range, a malformed spec string."""

    exit_code = 2


class ShapeError(TrtCompressError, ValueError):
    """A tensor does not fit: wrong rank, axis, dtype, or not finite."""

    exit_code = 2


class UnsupportedError(TrtCompressError):
    """Legal, but not here: the library is missing, or this GPU, TensorRT or opset cannot do it."""

    exit_code = 2


class BundleError(TrtCompressError):
    """A bundle cannot be read or written: missing or changed file, newer schema, existing directory, full disk."""

    exit_code = 2


class StreamError(TrtCompressError):
    """A stream cannot go on: its source stalls, ends early or changes, a stage raises, a sink cannot be written.

    The message names the frame. `exit_code` is that of the error that a stage raised; `result` is what there is of the
    stream's result, every frame accounted for.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.result: object = None
        if exit_code is not None:
            self.exit_code = exit_code


class GateError(TrtCompressError):
    """A check that must hold did not: verification, preflight, achieved precision; `report` says what was seen."""

    exit_code = 3


class ExportError(TrtCompressError):
    """torch → ONNX failed; the message names the module and the node."""


class BuildError(TrtCompressError):
    """ONNX → engine failed; `log` holds the builder's own lines."""

    def __init__(self, message: str, *, hint: str | None = None, log: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.log = log


class PluginError(TrtCompressError):
    """A native library is missing, foreign or of another version, or cannot be made with what is here."""

    exit_code = 2


class NativeError(PluginError):
    """A native library failed: a kernel reports an error, or a compiler does not take the sources."""

    exit_code = 1


class InternalError(TrtCompressError):
    """A bug of ours; please report the command and the traceback (`-v` prints it)."""
