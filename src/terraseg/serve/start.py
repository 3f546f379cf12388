"""Starting the service and its commands. Light to import: the command line reads its options from here."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from terraseg.api.options import Option, StrPath
from terraseg.errors import BusyError, ConfigError

if TYPE_CHECKING:
    from terraseg.serve.database import Database

_log = logging.getLogger(__name__)

ROOT = "service"
"""Folder of a service by default."""

_SHARED, _LIMITS = "shared by machines", "limits of a user"

_OLD = 86400.0
"""Seconds after which an unfinished upload is given up."""


def serve(
    *,
    root: StrPath = ROOT,
    host: str = "127.0.0.1",
    port: int = 8765,
    recipes: StrPath = "configs",
    weights: StrPath = "data/weights",
    slots: int | None = None,
    host_gb: float = 4.0,
    workers_only: bool = False,
    database: Annotated[str | None, Option(_SHARED, metavar="URL")] = None,
    artefacts: Annotated[str | None, Option(_SHARED, metavar="URL")] = None,
    max_upload_gb: Annotated[float, Option(_LIMITS)] = 20.0,
    quota_gb: Annotated[float, Option(_LIMITS)] = 100.0,
    quota_jobs: Annotated[int, Option(_LIMITS)] = 20,
    rate: Annotated[int, Option(_LIMITS)] = 6000,
) -> None:
    """Fine-tune and map for others: datasets, models and maps over HTTP and by a Python SDK.

    `terraseg serve keys add|list|revoke` handles API keys, `terraseg serve clean` deletes files that nothing needs.

    Args:
        root: folder of this machine's files: uploads, work, and by default database and artefacts.
        host: address to listen at; any other than this machine's own needs API keys.
        port: port to listen at.
        recipes: folder of the base models.
        weights: folder of the weights files that a training may name; the same files on each machine.
        slots: jobs at a time on this machine; by default one for each GPU, or one.
        host_gb: memory for warm models in GB of their weights.
        workers_only: run jobs of a service on another machine, with the same ``database`` and ``artefacts``.
        database: SQLAlchemy's address of the database; by default a SQLite file in ``root``.
        artefacts: where files are kept: a folder, or s3://BUCKET/FOLDER with the options of PyArrow; by default in
            ``root``.
        max_upload_gb: largest size of one dataset in GB.
        quota_gb: largest size of all files and results of a user in GB.
        quota_jobs: most unfinished jobs of a user.
        rate: most requests of a user in a minute.

    Raises:
        ConfigError: another address than this machine's own without API keys, no recipes, no such database or store,
            or a port that is taken.
        BusyError: another service works in ``root``.
    """
    from terraseg.core.files import output_lock
    from terraseg.serve.assemble import Settings, assemble, listening, server_of
    from terraseg.serve.auth import LOOPBACK, list_keys

    settings = Settings(
        Path(root).absolute(), Path(recipes).absolute(), Path(weights), database, artefacts, slots,
        alone=host in LOOPBACK, max_upload=round(max_upload_gb * 1e9), quota=round(quota_gb * 1e9),
        most_jobs=quota_jobs, host_bytes=round(host_gb * 1e9), rate=rate,
    )  # fmt: skip
    try:
        with output_lock(settings.root):
            service, runner = assemble(settings)
            keys = list_keys(service.queue.database)
            if not (settings.alone or workers_only or any(key.revoked is None for key in keys)):
                raise ConfigError(
                    f"--host {host} without API keys: anyone who reaches it could use it",
                    fix=f"`terraseg serve keys add NAME --root {root}`, or drop --host and connect with `ssh -L`",
                )
            taken = None if workers_only else listening(host, port)
            runner.start()
            try:
                if taken is None:
                    _log.info("workers of %s; stop them with Ctrl-C", settings.root)
                    runner.wait()
                else:
                    _log.info("terraseg serves %s at http://%s:%d; stop it with Ctrl-C", settings.root, host, port)
                    server_of(service).run(sockets=[taken])
            finally:
                runner.stop()
                service.host.close()
    except BusyError as error:
        raise BusyError(f"another service uses {root}", fix="stop it, or choose another --root") from error


def add_key(
    user: str, *, root: StrPath = ROOT, database: Annotated[str | None, Option(_SHARED, metavar="URL")] = None
) -> str:
    """Make an API key of a user. It is shown once: the service keeps only its hash.

    Args:
        user: name of the user; each user sees only their own datasets, models and maps.
        root: folder of the service.
        database: its database, if that is not in ``root``.

    Returns:
        The key.

    Raises:
        ConfigError: the name is not a user's, or the database can't be used.
    """
    from terraseg.serve.auth import add_key as add

    return add(_database(root, database, make=True), user)


def list_keys(
    *, root: StrPath = ROOT, database: Annotated[str | None, Option(_SHARED, metavar="URL")] = None
) -> list[tuple[str, str, str, str]]:
    """List the API keys.

    Args:
        root: folder of the service.
        database: its database, if that is not in ``root``.

    Returns:
        Id, user, when it was made, and when it was revoked (or an empty text).

    Raises:
        ConfigError: there is no service, or its database can't be used.
    """
    from terraseg.serve.auth import list_keys as keys

    return [(key.id, key.user, _day(key.created), _day(key.revoked)) for key in keys(_database(root, database))]


def revoke_key(
    key: str, *, root: StrPath = ROOT, database: Annotated[str | None, Option(_SHARED, metavar="URL")] = None
) -> None:
    """Revoke an API key: requests with it fail within a second.

    Args:
        key: its id, as `terraseg serve keys list` shows it.
        root: folder of the service.
        database: its database, if that is not in ``root``.

    Raises:
        ConfigError: there is no service, or its database can't be used.
        NotThereError: there is no such key.
    """
    from terraseg.serve.auth import revoke_key as revoke

    revoke(_database(root, database), key)


def clean(
    *,
    root: StrPath = ROOT,
    database: Annotated[str | None, Option(_SHARED, metavar="URL")] = None,
    artefacts: Annotated[str | None, Option(_SHARED, metavar="URL")] = None,
) -> list[str]:
    """Delete what nothing needs: files without a dataset, results without a job, uploads given up for a day.

    The service may run meanwhile.

    Args:
        root: folder of the service.
        database: its database, if that is not in ``root``.
        artefacts: its artefacts, if they are not in ``root``.

    Returns:
        What was deleted.

    Raises:
        ConfigError: there is no service, or its database or artefacts can't be used.
    """
    from terraseg.serve.assemble import Settings
    from terraseg.serve.clean import sweep
    from terraseg.serve.store import Store

    settings = Settings(Path(root).absolute(), Path(), Path(), database, artefacts)
    return sweep(_database(root, database), Store(settings.artefacts_url), settings.root, older_than=time.time() - _OLD)


def _database(root: StrPath, url: str | None, *, make: bool = False) -> "Database":
    from terraseg.serve.assemble import Settings
    from terraseg.serve.database import Database

    settings = Settings(Path(root).absolute(), Path(), Path(), url)
    if make:
        settings.root.mkdir(parents=True, exist_ok=True)
    elif url is None and not settings.database_file.is_file():
        raise ConfigError(f"no service in {root}", expected=settings.database_file.name, fix="correct --root")
    return Database(settings.database_url)


def _day(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
