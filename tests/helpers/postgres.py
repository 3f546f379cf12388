"""An empty PostgreSQL for a test, from the programs of this machine."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
"""Debian's; empty where there is none."""


@dataclass(frozen=True)
class Postgres:
    """A database in a folder, on a Unix socket alone."""

    root: Path

    @property
    def url(self) -> str:
        """Its address."""
        return f"postgresql+psycopg://terraseg@/postgres?host={self.root}"

    def run(self, program: str, *arguments: str) -> None:
        """Run one of its programs; it does not run as root."""
        as_other = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*as_other, str(POSTGRES[-1].parent / program), "-D", str(self.root / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    def start(self) -> None:
        """Start it."""
        options = f"-k {self.root} -c listen_addresses='' -c fsync=off"
        self.run("pg_ctl", "-w", "-l", str(self.root / "log"), "-o", options, "start")

    def stop(self) -> None:
        """Stop it as a crash would."""
        self.run("pg_ctl", "-m", "immediate", "stop")


@contextmanager
def postgresql() -> Iterator[Postgres]:
    """An empty database in a temporary folder."""
    root = Path(tempfile.mkdtemp(prefix="pg-"))  # the path of a socket must be short
    if os.geteuid() == 0:
        shutil.chown(root, "postgres")
    database = Postgres(root)
    database.run("initdb", "-U", "terraseg", "-A", "trust")
    database.start()
    try:
        yield database
    finally:
        database.stop()
        shutil.rmtree(root)
