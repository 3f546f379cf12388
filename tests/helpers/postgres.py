"""An empty PostgreSQL for a test, from the programs of this machine."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
"""Debian's; empty where there is none."""


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of a database, in a temporary folder and on a Unix socket alone."""
    programs = POSTGRES[-1].parent
    root = Path(tempfile.mkdtemp(prefix="pg-"))  # the path of a socket must be short
    as_other: list[str] = []
    if os.geteuid() == 0:  # it does not run as root
        as_other = ["runuser", "-u", "postgres", "--"]
        shutil.chown(root, "postgres")

    def run(program: str, *arguments: str) -> None:
        command = [*as_other, str(programs / program), "-D", str(root / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    run("initdb", "-U", "terraseg", "-A", "trust")
    options = f"-k {root} -c listen_addresses='' -c fsync=off"
    run("pg_ctl", "-w", "-l", str(root / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg://terraseg@/postgres?host={root}"
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(root)
