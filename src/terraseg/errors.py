"""The error tree.

Every message is one line that says what was found, what was expected and what to do about it. The
command line prints it and exits with status 2; nothing else of terraseg catches these errors, but for a
comparison, which goes on with its other cells, and the service, which hands them to its client.
"""


class TerrasegError(Exception):
    """Root of all errors that the user can mend.

    Args:
        found: what was found, naming the file, key or value.
        expected: what should have been there.
        fix: what to do now, as a command or an edit.
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
    """A configuration file has an unknown key, a wrong type or a contradiction."""


class AOIError(TerrasegError):
    """The area of interest is missing, not polygonal, or outside of the data."""


class CatalogueError(TerrasegError):
    """A catalogue did not answer, answered with an error, or has no scene for the request."""


class SceneError(TerrasegError):
    """A scene breaks contract 1: bands, unit, CRS, nodata, or unlike scenes mixed."""


class LabelError(TerrasegError):
    """Footprints are missing, empty, of another class, or break contract 2."""


class DatasetError(TerrasegError):
    """data/processed breaks contract 3: missing, incomplete, corrupt or changed since."""


class SplitError(DatasetError):
    """The splits leak, or a split has nothing to learn from or to test on."""


class WeightsError(TerrasegError):
    """Pretrained weights were asked for and can't be had, or don't fit the architecture."""


class CheckpointError(TerrasegError):
    """A checkpoint or bundle is missing, corrupt, or of another architecture."""


class TrainingError(TerrasegError):
    """Training can't go on: not-a-number loss, out of memory."""


class OutputError(TerrasegError):
    """An output can't be written: disk full, not writable, or in use by another run."""


class BusyError(OutputError):
    """An output is being written by another run right now."""


class ServiceError(TerrasegError):
    """The fine-tuning service can't be reached, or refuses a request; `terraseg.serve.http_errors` says which."""


def cause_of(error: BaseException) -> TerrasegError | None:
    """The error of ours that an exception is or was raised from; None where there is none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, TerrasegError):
        cause = cause.__cause__
    return cause
