"""The errors of terraseg.

Every message is one line: what was found, what was expected, and how to fix it. The command line prints it and exits
with status 2. Besides that, only a comparison (which continues with its other cells) and the service (which
passes them to its client) catch these errors.
"""


class TerrasegError(Exception):
    """Base of all errors that the user can fix.

    Args:
        found: what was found, with the file, key or value.
        expected: what was expected instead.
        fix: what to do now: a command or an edit.
    """

    def __init__(self, found: str, *, expected: str | None = None, fix: str | None = None) -> None:
        self.found, self.expected, self.fix = found, expected, fix
        parts = [found.rstrip(".")]
        if expected:
            parts.append(f"expected {expected.rstrip('.')}")
        if fix:
            parts.append(f"to fix it: {fix.rstrip('.')}")
        super().__init__("; ".join(" ".join(part.split()) for part in parts) + ".")


class ConfigError(TerrasegError):
    """A configuration has an unknown key, a wrong type or a contradiction."""


class AOIError(TerrasegError):
    """The area of interest is missing, not a polygon, or outside the data."""


class CatalogueError(TerrasegError):
    """A catalogue does not answer, answers with an error, or has no scene for the request."""


class SceneError(TerrasegError):
    """A scene is missing or has the wrong bands, unit, CRS or nodata, or scenes of different kinds are mixed."""


class LabelError(TerrasegError):
    """Footprints are missing, empty, invalid or of another class."""


class DatasetError(TerrasegError):
    """A dataset or a result is missing, incomplete, corrupt or changed by hand."""


class SplitError(DatasetError):
    """The splits share ground, or a split has nothing to learn from or to test on."""


class WeightsError(TerrasegError):
    """Pretrained weights can't be loaded or don't fit the architecture."""


class CheckpointError(TerrasegError):
    """A checkpoint or bundle is missing, corrupt or of another architecture."""


class TrainingError(TerrasegError):
    """Training can't continue, for example because the loss is NaN or the memory is full."""


class OutputError(TerrasegError):
    """An output can't be written: the disk is full, the folder is read-only, or another run is using it."""


class BusyError(OutputError):
    """Another run is writing the output right now."""


class ServiceError(TerrasegError):
    """The fine-tuning service can't be reached or rejects a request; see `terraseg.serve.http_errors`."""


def cause_of(error: BaseException) -> TerrasegError | None:
    """The `TerrasegError` that an exception is or was raised from; None if there is none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, TerrasegError):
        cause = cause.__cause__
    return cause
