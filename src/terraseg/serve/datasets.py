"""Datasets of the users: agreed file by file, uploaded in parts, each file stored once for each user."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import delete, exists, func, select
from sqlalchemy.orm import Session

from terraseg.core.files import sha256_of_file
from terraseg.errors import ConfigError, SceneError
from terraseg.serve.database import OVER, Database, Dataset, DatasetFile, File, Job, new_id
from terraseg.serve.http_errors import NotThereError, TooLargeError, WrongStateError
from terraseg.serve.schema import DatasetAnswer, FileNeed, NewDataset, dataset_answer
from terraseg.serve.store import Store

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF. Checked because GDAL would open a VRT named .tif, which can read any file here."""


@dataclass
class Datasets:
    """The datasets of all users.

    Attributes:
        database: with their rows.
        store: with their files.
        parts: folder of unfinished files.
        max_upload: most bytes of one dataset.
        quota: most bytes of one user.
    """

    database: Database
    store: Store
    parts: Path
    max_upload: int
    quota: int
    _receiving: set[Path] = field(default_factory=set)

    def create(self, user: str, asked: NewDataset) -> DatasetAnswer:
        """Agree on a dataset; its answer names the files that are missing.

        Raises:
            TooLargeError: the dataset, or all files of the user with it.
            WrongStateError: a file has another size than the same one that is already there.
        """
        offers = {file.sha256: file.size for file in asked.files}
        if (size := sum(offers.values())) > self.max_upload:
            raise _too_large(size, self.max_upload, "one dataset", "--max-upload-gb")
        row = Dataset(
            id=new_id("dataset"), user=user, name=asked.name, created=time.time(),
            facts=asked.facts.model_dump(mode="json"),
        )  # fmt: skip
        with self.database.writing() as session:
            rows = session.execute(select(File.sha256, File.size).where(File.user == user))
            known = {row.sha256: row.size for row in rows}
            if wrong := [each for each in offers if known.get(each, offers[each]) != offers[each]]:
                raise WrongStateError(f"the file {wrong[0]} has {known[wrong[0]]} bytes, not {offers[wrong[0]]}")
            new = {each: size for each, size in offers.items() if each not in known}
            if (total := used_bytes(session, user) + sum(new.values())) > self.quota:
                raise _too_large(total, self.quota, "one user", "--quota-gb")
            session.add_all(File(user=user, sha256=each, size=size) for each, size in new.items())
            session.add(row)
            session.flush()
            session.add_all(
                DatasetFile(dataset_id=row.id, path=file.path, user=user, sha256=file.sha256) for file in asked.files
            )
        return self.get(user, row.id)

    def get(self, user: str, name: str) -> DatasetAnswer:
        """A dataset.

        Raises:
            NotThereError: the user has none with this id.
        """
        with self.database.reading() as session:
            return self._answer(session, own_dataset(session, user, name))

    def all(self, user: str) -> list[DatasetAnswer]:
        """The user's datasets, the newest first."""
        with self.database.reading() as session:
            rows = session.scalars(select(Dataset).where(Dataset.user == user).order_by(Dataset.created.desc()))
            return [self._answer(session, row) for row in rows]

    def check_files(self, user: str, name: str, split: str | None = None) -> None:
        """Check that all files of a dataset are there, and that it has one in a split.

        Raises:
            NotThereError: the user has no such dataset.
            WrongStateError: files are missing.
            ConfigError: there is no image in the split.
        """
        if (missing := self.get(user, name).missing) != []:
            raise WrongStateError(f"{len(missing)} files of dataset {name} are missing", fix="upload it again")
        with self.database.reading() as session:
            if not file_keys(session, name, split):
                raise ConfigError(f"dataset {name} has no image in {split}", fix="choose another split")

    def delete(self, user: str, name: str) -> None:
        """Delete a dataset, and those of its files that are in no other.

        Raises:
            NotThereError: the user has no such dataset.
            WrongStateError: an unfinished job needs it.
        """
        with self.database.writing() as session:
            row = own_dataset(session, user, name)
            needs = select(Job.id).where(Job.dataset_id == name, Job.status.not_in(OVER))
            if job := session.scalar(needs):
                raise WrongStateError(f"{job} needs the dataset {name}", fix="cancel it, or wait for it")
            session.delete(row)
            session.flush()
            # Before the commit: a client that offers one of these files again waits for it, and then sends it.
            self._sweep(session, user)

    def _sweep(self, session: Session, user: str) -> None:
        used = exists().where(DatasetFile.user == File.user, DatasetFile.sha256 == File.sha256)
        for file in session.scalars(select(File).where(File.user == user, ~used)):
            self.store.delete(file_key(user, file.sha256))
            self.part(user, file.sha256).unlink(missing_ok=True)
            session.execute(delete(File).where(File.user == user, File.sha256 == file.sha256))

    def part(self, user: str, sha256: str) -> Path:
        """Where the bytes of an unfinished file are."""
        return self.parts / f"{user}-{sha256}.part"

    async def receive(
        self, user: str, name: str, sha256: str, body: AsyncIterator[bytes], *, offset: int
    ) -> FileNeed | None:
        """Add bytes to a file of a dataset. What has arrived is kept if the connection is cut.

        Args:
            offset: where the bytes belong: what is already there, see `FileNeed`.

        Returns:
            What is still missing of the file; None if it is complete.

        Raises:
            NotThereError: the user has no such dataset, or it has no such file.
            WrongStateError: another offset is next, or the file is being sent by another request.
            TooLargeError: there are more bytes than were offered.
            SceneError: the file is not a TIFF, or has another SHA-256.
        """
        size = await asyncio.to_thread(self._size_of, user, name, sha256)
        if size is None:
            return None
        part = self.part(user, sha256)
        if part in self._receiving:
            raise WrongStateError(f"the file {sha256} is being sent by another request", fix="wait for it")
        self._receiving.add(part)
        try:
            there = part.stat().st_size if part.is_file() else 0
            if offset != there:
                raise WrongStateError(f"{there} bytes of the file {sha256} are there", expected=f"offset={there}")
            with part.open("ab") as handle:
                async for chunk in body:
                    there += len(chunk)
                    if there > size:
                        raise TooLargeError(f"the file {sha256} has more than the {size} bytes that were offered")
                    handle.write(chunk)
            if there < size:
                return FileNeed(sha256=sha256, size=size, offset=there)
            await asyncio.to_thread(self._keep, user, sha256, part)
            return None
        finally:
            self._receiving.discard(part)

    def _size_of(self, user: str, name: str, sha256: str) -> int | None:
        """Bytes of a file of a dataset; None if it is complete."""
        with self.database.reading() as session:
            own_dataset(session, user, name)
            belongs = select(DatasetFile.path).where(DatasetFile.dataset_id == name, DatasetFile.sha256 == sha256)
            file = session.get(File, (user, sha256))
            if file is None or session.scalar(belongs.limit(1)) is None:
                raise NotThereError(f"dataset {name} has no file {sha256[:64]!r}", fix="create the dataset again")
            return None if file.stored else file.size

    def _keep(self, user: str, sha256: str, part: Path) -> None:
        try:
            check_tiff(part, f"what was sent as {sha256}")
            if (found := sha256_of_file(part)) != sha256:
                raise SceneError(f"what was sent as {sha256} has the SHA-256 {found}", fix="send it again")
        except SceneError:
            part.unlink()
            raise
        self.store.put(part, file_key(user, sha256))
        with self.database.writing() as session:
            file = session.get(File, (user, sha256))
            if file is None:  # the dataset was deleted in the meantime
                self.store.delete(file_key(user, sha256))
                raise NotThereError(f"no dataset has the file {sha256} any more")
            file.stored = time.time()

    def _answer(self, session: Session, row: Dataset) -> DatasetAnswer:
        own = select(DatasetFile.sha256).where(DatasetFile.dataset_id == row.id)
        files = list(session.scalars(select(File).where(File.user == row.user, File.sha256.in_(own))))
        missing = [
            FileNeed(sha256=file.sha256, size=file.size, offset=self._there(row.user, file.sha256))
            for file in files
            if not file.stored
        ]
        return dataset_answer(row, files=len(files), size=sum(file.size for file in files), missing=missing)

    def _there(self, user: str, sha256: str) -> int:
        part = self.part(user, sha256)
        return part.stat().st_size if part.is_file() else 0


def check_tiff(path: Path, what: str) -> None:
    """Check the first bytes of a file.

    Raises:
        SceneError: it is not a TIFF.
    """
    with path.open("rb") as handle:
        if handle.read(4) not in _TIFF:
            raise SceneError(f"{what} is not a TIFF", fix="send the GeoTIFF itself")


def own_dataset(session: Session, user: str, name: str) -> Dataset:
    """The user's dataset with an id.

    Raises:
        NotThereError: the user has none; another user's is not there either.
    """
    row = session.get(Dataset, name) if name.isprintable() else None
    if row is None or row.user != user:
        raise NotThereError(f"no dataset {name!r}")
    return row


def file_keys(session: Session, dataset: str, split: str | None = None) -> dict[str, str]:
    """Paths of a dataset, or of one of its splits, and their keys in the store."""
    rows = session.scalars(select(DatasetFile).where(DatasetFile.dataset_id == dataset))
    begin = "" if split is None else f"{split}/"
    return {row.path: file_key(row.user, row.sha256) for row in rows if row.path.startswith(begin)}


def used_bytes(session: Session, user: str) -> int:
    """Bytes of a user's files and results."""
    files = session.scalar(select(func.sum(File.size)).where(File.user == user))
    results = session.scalar(select(func.sum(Job.size)).where(Job.user == user))
    return int(files or 0) + int(results or 0)


def file_key(user: str, sha256: str) -> str:
    """Key of a file in the store. Users don't share files: a hash alone must not give anybody's data."""
    return f"files/{user}/{sha256}"


def _too_large(size: int, most: int, of: str, option: str) -> TooLargeError:
    return TooLargeError(
        f"{size / 1e9:.3g} GB of {of}",
        expected=f"at most {most / 1e9:.3g} GB",
        fix=f"delete what is not needed, or start the service with a larger {option}",
    )
