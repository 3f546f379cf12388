"""The tables of the service, on SQLite or PostgreSQL: the truth about keys, datasets, files and jobs."""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Engine,
    ForeignKey,
    Index,
    Row,
    Select,
    String,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.concurrency import run_in_threadpool

from terraseg.errors import ConfigError

ACTIVE = ("SETTING_UP", "DOWNLOADING_DATA", "FINE_TUNING", "RUNNING_INFERENCE", "SAVING_RESULTS")
"""Statuses of a job that a worker has."""

OVER = ("COMPLETED", "FAILED", "CANCELLED")
"""Statuses that are final."""


_LOCK = 0x7E44A5E6
"""Names the lock in PostgreSQL under which the tables are made."""


class Table(DeclarativeBase):
    """Base of the tables."""

    type_annotation_map = {dict[str, Any]: JSON, str: String(200)}  # noqa: RUF012  # SQLAlchemy's


class Key(Table):
    """An API key: only its hash is stored."""

    __tablename__ = "keys"
    id: Mapped[str] = mapped_column(primary_key=True)
    user: Mapped[str] = mapped_column(index=True)
    hash: Mapped[str]
    created: Mapped[float]
    revoked: Mapped[float | None]


class Dataset(Table):
    """A user's folder of images: ``READY`` when all its files are there. ``facts`` is what the client found in it."""

    __tablename__ = "datasets"
    id: Mapped[str] = mapped_column(primary_key=True)
    user: Mapped[str] = mapped_column(index=True)
    name: Mapped[str]
    created: Mapped[float]
    facts: Mapped[dict[str, Any]]


class File(Table):
    """A file that a user's datasets may share; ``stored`` is when all its bytes were there."""

    __tablename__ = "files"
    user: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    stored: Mapped[float | None]


class DatasetFile(Table):
    """A path of a dataset and its content."""

    __tablename__ = "dataset_files"
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(String(500), primary_key=True)
    user: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64), index=True)


class Job(Table):
    """A fine-tuning (which makes a model) or an inference.

    ``worker``, ``attempts`` and ``heartbeat`` are the lease: a worker that has lost it can't change the row any more.
    ``request`` holds the whole metadata; ``result`` is what the job's process reports at its end.
    """

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    user: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    status: Mapped[str] = mapped_column(default="QUEUED")
    created: Mapped[float]
    started: Mapped[float | None]
    finished: Mapped[float | None]
    dataset_id: Mapped[str]
    model_id: Mapped[str | None]
    request: Mapped[dict[str, Any]]
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)
    result: Mapped[dict[str, Any]] = mapped_column(default=dict)
    error: Mapped[dict[str, Any] | None]
    cancelled: Mapped[bool] = mapped_column(default=False)
    worker: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(default=0)
    heartbeat: Mapped[float | None]
    size: Mapped[int] = mapped_column(BigInteger, default=0)

    __table_args__ = (Index("jobs_by_status", "status", "created"),)


class Database:
    """Sessions of one database. The tables are made if they are missing.

    Args:
        url: as SQLAlchemy writes it: ``sqlite:///FILE`` or ``postgresql+psycopg://USER@HOST/NAME``.

    Raises:
        ConfigError: the address is invalid, its driver is missing, or the database does not answer.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = create_engine(url, pool_pre_ping=True, pool_size=20, max_overflow=40)
            if self._engine.dialect.name == "sqlite":
                _listen(self._engine)
            with self._engine.begin() as connection:
                if self._engine.dialect.name == "postgresql":  # else machines that start together fail; SQLite locks
                    connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
                Table.metadata.create_all(connection)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, OperationalError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ConfigError(
                f"--database can't be used ({reason})",
                expected="sqlite:///FILE, or postgresql+psycopg://USER@HOST/NAME (pip install 'terraseg[service]')",
            ) from error
        self._reader = self._engine.execution_options(reads_only=True)
        self._is_file = self._engine.dialect.name == "sqlite"

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for queries; it waits for no writer."""
        with Session(self._reader, expire_on_commit=False) as session:
            yield session

    async def row(self, query: Select[Any], **values: object) -> Row[Any] | None:
        """The row that a query finds, for a coroutine, without the costs of a session.

        A file is read at once: that takes less time than to hand it to a thread, and waits for no writer.
        """
        if self._is_file:
            return self._row(query, values)
        return await run_in_threadpool(self._row, query, values)

    def _row(self, query: Select[Any], values: dict[str, object]) -> Row[Any] | None:
        with self._reader.connect() as connection:
            return connection.execute(query, values).one_or_none()

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose changes are committed together when the block succeeds."""
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()


def _listen(engine: Engine) -> None:
    """SQLite: readers never wait, writers wait for each other at once instead of failing when they first write."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:  # noqa: ANN401
        connection.isolation_level = None  # the module would begin transactions by itself, too late
        connection.execute("PRAGMA busy_timeout=60000")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:  # noqa: ANN401
        reads = connection.get_execution_options().get("reads_only", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def new_id(kind: str) -> str:
    """A new id, which nobody can guess; those of one kind sort by time."""
    return f"{kind}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(6)}"
