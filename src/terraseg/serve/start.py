"""Starting the service. Light to import: the command line reads its options from here."""

import errno
import logging
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from terraseg.api.options import StrPath
from terraseg.core.files import output_lock
from terraseg.errors import BusyError, ConfigError

if TYPE_CHECKING:
    from terraseg.serve.api import Settings

_log = logging.getLogger(__name__)

_LEAST_TOKEN = 16
"""Least length of a token, in characters."""


def serve(
    *,
    root: StrPath,
    host: str = "127.0.0.1",
    port: int = 8765,
    token_file: StrPath | None = None,
    recipes: StrPath = "configs",
    weights: StrPath = "data/weights",
    max_upload_gb: float = 20.0,
) -> None:
    """Fine-tune for others: upload labelled GeoTIFFs, train, get metrics, bundle and maps, over HTTP.

    Args:
        root: folder of the datasets and jobs.
        host: address to listen at; any other than the default needs a token.
        port: port to listen at.
        token_file: file with one line, the token that requests must carry.
        recipes: folder of the configs to train with.
        weights: folder of the weights that a job may name.
        max_upload_gb: largest size of one upload in GB.

    Raises:
        ConfigError: another address than this machine's own without a token, an invalid token, no recipes, or a port
            that is taken.
        BusyError: another service works in ``root``.
    """
    from terraseg.serve.api import LOOPBACK, Settings

    root, recipes, weights = Path(root), Path(recipes), Path(weights)
    if token_file is None and host not in LOOPBACK:
        raise ConfigError(
            f"--host {host} without a token: anyone who reaches it could train and read all datasets",
            expected="a token for other machines",
            fix="write one into a file and add --token-file, or drop --host and reach the service with `ssh -L`",
        )
    if not recipes.is_dir():
        raise ConfigError(f"no folder of recipes at {recipes}", fix="start it in the repository, or correct --recipes")
    settings = Settings(
        root=root,
        recipes=recipes.absolute(),
        weights=weights.absolute(),
        token=None if token_file is None else read_token(Path(token_file)),
        max_upload=round(max_upload_gb * 1e9),
    )
    try:
        with output_lock(root):
            _listen(settings, host=host, port=port)
    except BusyError as error:
        raise BusyError(f"another service uses {root}", fix="stop it, or choose another --root") from error


def _listen(settings: "Settings", *, host: str, port: int) -> None:
    from aiohttp import web

    from terraseg.serve.api import Service

    application = Service(settings).application()
    _log.info(
        "terraseg serves %s at http://%s:%d; stop it with Ctrl-C, resume it with the same command",
        settings.root,
        host,
        port,
    )
    try:
        web.run_app(application, host=host, port=port, print=None, access_log=None)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            raise
        raise ConfigError(f"can't listen on {host}:{port} ({error.strerror})", fix="choose another --port") from error


def read_token(path: Path) -> str:
    """Read the token from a file.

    Raises:
        ConfigError: the file is missing, can be read by other users, or has no valid token.
    """
    if not path.is_file():
        raise ConfigError(f"no token file at {path}", fix="correct --token-file")
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"other users of this machine can read {path}", fix=f"chmod 600 {path}")
    token = path.read_text(encoding="utf-8").strip()
    if len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{path} has no valid token",
            expected=f"at least {_LEAST_TOKEN} characters on one line",
            fix=f"openssl rand -hex 32 > {path}",
        )
    return token
