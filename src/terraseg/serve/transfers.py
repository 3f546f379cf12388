"""Files over HTTP without holding them in memory: bodies into files, tars into folders, folders into tars."""

import gzip
import lzma
import shutil
import tarfile
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from aiohttp import web

from terraseg.errors import ConfigError, SceneError
from terraseg.serve.http_errors import TooLargeError
from terraseg.serve.schema import upload_path

_CHUNK = 1 << 20

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF. GDAL goes by content: a VRT named .tif would read any file of this machine."""

_SUFFIXES = (".tif", ".tiff")


async def receive(body: AsyncIterator[bytes], target: Path, *, room: int) -> int:
    """Write a body to a file, which appears whole.

    Args:
        body: in chunks.
        target: the file; replaced where it is there.
        room: bytes that it may have.

    Returns:
        Bytes that it has.

    Raises:
        TooLargeError: it has more.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, size = target.with_name(f".{target.name}.part"), 0
    try:
        with temporary.open("wb") as handle:
            async for chunk in body:
                size += len(chunk)
                if size > room:
                    raise too_large(room)
                handle.write(chunk)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return size


def too_large(room: int) -> TooLargeError:
    """That more was sent than there is room for."""
    return TooLargeError(
        "the upload is larger than what the service still takes",
        expected=f"at most {room / 1e9:.3g} GB more",
        fix="upload fewer images, or start the service with a larger --max-upload-gb",
    )


def raster_path(name: str) -> PurePosixPath:
    """The relative path of a GeoTIFF in an upload.

    Raises:
        ConfigError: a path that leads elsewhere, or another kind of file.
    """
    try:
        path = upload_path(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"{name} is no GeoTIFF by its name", expected=".tif or .tiff", fix="leave it out")
    return path


def check_tiff(path: Path, name: str) -> None:
    """Look at the first bytes of a file; remove it where they are no TIFF's.

    Raises:
        SceneError: naming it.
    """
    with path.open("rb") as handle:
        first = handle.read(4)
    if first not in _TIFF:
        path.unlink()
        raise SceneError(f"{name} is no TIFF by its content", fix="upload the GeoTIFF itself")


@dataclass(frozen=True)
class Unpacked:
    """What came out of an archive: bytes by path, and the names of what is no GeoTIFF and was left out."""

    sizes: dict[str, int]
    left_out: list[str]


def unpack(archive: Path, folder: Path, *, room: int) -> Unpacked:
    """Unpack the GeoTIFFs of a tar, plain or compressed.

    Args:
        room: bytes that they may have, unpacked.

    Raises:
        ConfigError: no tar, or an entry that leads elsewhere.
        TooLargeError: there is more.
        SceneError: a file that is no TIFF.
    """
    unpacked = Unpacked({}, [])
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if not member.isfile():
                    raise ConfigError(f"the archive's {member.name} is a link or a device", expected="plain files")
                if not name.lower().endswith(_SUFFIXES):
                    unpacked.left_out.append(name)
                    continue
                room -= member.size
                if room < 0:
                    raise too_large(room + member.size)
                target = folder / raster_path(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None  # noqa: S101  # it is a plain file
                with source, target.open("wb") as handle:
                    shutil.copyfileobj(source, handle, _CHUNK)
                check_tiff(target, name)
                unpacked.sizes[name] = member.size
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ConfigError(f"the upload is no whole tar ({error})", fix="make it with `tar cf`") from error
    return unpacked


async def send_folder(request: web.Request, folder: Path) -> web.StreamResponse:
    """A folder's files as a tar, whose length is said before."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _hidden(path, folder))
    sent = [(path, *_header(path, folder)) for path in files]
    end = b"\0" * 2 * tarfile.BLOCKSIZE
    response = web.StreamResponse(
        headers={
            "Content-Type": "application/x-tar",
            "Content-Disposition": f'attachment; filename="{folder.name}.tar"',
        }
    )
    response.content_length = sum(len(header) + size + _padding(size) for _, header, size in sent) + len(end)
    await response.prepare(request)
    for path, header, size in sent:
        await response.write(header)
        for chunk in _chunks(path):
            await response.write(chunk)
        await response.write(b"\0" * _padding(size))
    await response.write(end)
    await response.write_eof()
    return response


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _header(path: Path, folder: Path) -> tuple[bytes, int]:
    """A file's header in a tar, and its size."""
    entry, stat = tarfile.TarInfo(path.relative_to(folder).as_posix()), path.stat()
    entry.size, entry.mtime = stat.st_size, int(stat.st_mtime)
    return entry.tobuf(tarfile.GNU_FORMAT), entry.size


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            yield chunk
