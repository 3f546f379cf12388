"""Delete what no row of the database needs."""

import shutil
from pathlib import Path

from sqlalchemy import exists, select

from terraseg.serve.database import OVER, Database, DatasetFile, File, Job
from terraseg.serve.datasets import file_key
from terraseg.serve.store import Store


def sweep(database: Database, store: Store, root: Path, *, older_than: float) -> list[str]:
    """Delete files without a dataset, results without a job, work of jobs that have ended, and old unfinished uploads.

    Args:
        database: the truth.
        store: its files; those that are newer than the rows read here are kept.
        root: folder of this machine.
        older_than: unfinished uploads that nobody has changed since then are deleted, in seconds since 1970.

    Returns:
        Keys and paths of what was deleted.
    """
    # Both lists come before the rows: what is made from now on is in neither.
    found, folders = sorted(store.keys()), list((root / "work").glob("*"))
    gone: list[str] = []
    with database.writing() as session:
        used = exists().where(DatasetFile.user == File.user, DatasetFile.sha256 == File.sha256)
        for file in session.scalars(select(File).where(~used)):
            session.delete(file)
        session.flush()
        files = {file_key(user, sha256) for user, sha256 in session.execute(select(File.user, File.sha256))}
        jobs = set(session.scalars(select(Job.id)))
        unfinished = set(session.scalars(select(Job.id).where(Job.status.not_in(OVER))))
        for key in found:
            kind, _, rest = key.partition("/")
            if (kind == "files" and key not in files) or (kind == "jobs" and rest.partition("/")[0] not in jobs):
                store.delete(key)
                gone.append(key)
    for folder in folders:
        if folder.name not in unfinished:
            shutil.rmtree(folder, ignore_errors=True)
            gone.append(str(folder))
    for part in (root / "uploads").glob("*.part"):
        if part.stat().st_mtime < older_than:
            part.unlink(missing_ok=True)
            gone.append(str(part))
    return gone
