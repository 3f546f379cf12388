"""Files over HTTP, streamed: bodies to files, tars to folders, folders to tars."""

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
"""First bytes of TIFF and BigTIFF. Checked because GDAL would open a VRT named .tif, which can read any file here."""

_SUFFIXES = (".tif", ".tiff", ".tif.msk", ".tiff.msk")
"""GeoTIFFs, and GDAL's masks of them."""


async def receive(body: AsyncIterator[bytes], target: Path, *, room: int) -> int:
    """Write a body to a file, atomically.

    Args:
        body: in chunks.
        target: the file; replaced if it exists.
        room: most bytes.

    Returns:
        Bytes written.

    Raises:
        TooLargeError: the body is larger.
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
    """The error for an upload that is larger than ``room`` bytes."""
    return TooLargeError(
        "the upload is larger than the service accepts",
        expected=f"at most {room / 1e9:.3g} GB more",
        fix="upload fewer images, or start the service with a larger --max-upload-gb",
    )


def raster_path(name: str) -> PurePosixPath:
    """Check the relative path of a GeoTIFF in an upload.

    Raises:
        ConfigError: the path leads outside the upload, or the suffix is not that of a GeoTIFF.
    """
    try:
        path = upload_path(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not path.name.lower().endswith(_SUFFIXES):
        raise ConfigError(f"{name} is not named like a GeoTIFF", expected=".tif or .tiff", fix="leave it out")
    return path


def check_tiff(path: Path, name: str) -> None:
    """Check the first bytes of a file; delete it if it is not a TIFF.

    Raises:
        SceneError: the file is not a TIFF.
    """
    with path.open("rb") as handle:
        first = handle.read(4)
    if first not in _TIFF:
        path.unlink()
        raise SceneError(f"the content of {name} is not a TIFF", fix="upload the GeoTIFF itself")


@dataclass(frozen=True)
class Unpacked:
    """Files from an archive: bytes by path, and names of the files left out because they are not GeoTIFFs."""

    sizes: dict[str, int]
    left_out: list[str]


def unpack(archive: Path, folder: Path, *, room: int) -> Unpacked:
    """Unpack the GeoTIFFs of a tar, plain or compressed.

    Args:
        room: most bytes, unpacked.

    Raises:
        ConfigError: not a tar, or a path that leads outside.
        TooLargeError: the files are larger.
        SceneError: a file is not a TIFF.
    """
    unpacked = Unpacked({}, [])
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if not member.isfile():
                    raise ConfigError(f"{member.name} in the archive is a link or a device", expected="regular files")
                if not name.lower().endswith(_SUFFIXES):
                    unpacked.left_out.append(name)
                    continue
                room -= member.size
                if room < 0:
                    raise too_large(room + member.size)
                target = folder / raster_path(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None  # noqa: S101  # it is a regular file
                with source, target.open("wb") as handle:
                    shutil.copyfileobj(source, handle, _CHUNK)
                check_tiff(target, name)
                unpacked.sizes[name] = member.size
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ConfigError(f"the upload is not a complete tar ({error})", fix="make it with `tar cf`") from error
    return unpacked


async def send_folder(request: web.Request, folder: Path) -> web.StreamResponse:
    """Send the files of a folder as a tar; the header has its length."""
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
    """Header of a file in a tar, and size of the file."""
    entry, stat = tarfile.TarInfo(path.relative_to(folder).as_posix()), path.stat()
    entry.size, entry.mtime = stat.st_size, int(stat.st_mtime)
    return entry.tobuf(tarfile.GNU_FORMAT), entry.size


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            yield chunk
