"""Read rasters and items over http(s), with bounded retries."""

import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

import numpy as np
import numpy.typing as npt
import rasterio
import requests
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from terraseg.errors import SceneError

_log = logging.getLogger(__name__)

_PREFIX = "/vsicurl?"
_RETRIES = 3
_PAUSE = 0.5
"""Seconds before the first retry; doubles with each."""

_PATIENCE = (10.0, 30.0)
"""Seconds to wait for a connection, and for more of a stalled response."""

_GDAL = (
    f"{_PREFIX}max_retry={_RETRIES}&retry_delay={_PAUSE}&list_dir=no&empty_dir=yes"
    f"&connecttimeout={_PATIENCE[0]:.0f}&low_speed_time={_PATIENCE[1]:.0f}&low_speed_limit=1024&url="
)
"""Options of GDAL in the file name, not in the environment: so every thread and process that opens it has them."""

_FORGETTING = {"CPL_VSIL_CURL_NON_CACHED": _PREFIX}
"""GDAL caches failed and truncated responses as if they were the file; only this clears them, at the next close."""

_THIS_RUN = str(uuid.uuid4())

_AGAIN = (429, 500, 502, 503, 504)


def is_url(name: str) -> bool:
    """Whether a name is an http(s) address."""
    return urlsplit(name).scheme.lower() in ("http", "https")


def gdal_name(url: str) -> str:
    """The name under which GDAL opens an address."""
    return _GDAL + quote(url, safe="")


def url_of(name: str) -> str | None:
    """The address in a name that GDAL opens, None if it is not an http(s) address."""
    if name.startswith(_PREFIX):
        return parse_qs(name.removeprefix(_PREFIX))["url"][0]
    return name.removeprefix("/vsicurl/") if name.startswith("/vsicurl/") else None


def without_secrets(url: str) -> str:
    """An address without user and query, which hold passwords and signatures: safe to write into a product."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def get_json(url: str) -> dict[str, Any]:
    """Get an item.

    Raises:
        SceneError: no response after the retries, or it is not a JSON object.
    """
    answer = _ask("GET", url)
    try:
        value = answer.json()
    except requests.JSONDecodeError as error:
        raise SceneError(f"{without_secrets(url)} is not JSON ({error})", expected="a STAC item") from error
    if not isinstance(value, dict):
        raise SceneError(f"{without_secrets(url)} is not a JSON object", expected="a STAC item")
    return value


def url_identity(url: str) -> list[str | None]:
    """ETag, date and length of the file at an address: they change when the file does.

    If a server gives neither ETag nor date, the identity differs in each process, so that no run resumes on what may
    be another file.

    Raises:
        SceneError: no response after the retries.
    """
    headers = _ask("HEAD", url).headers
    identity = [headers.get(name) for name in ("ETag", "Last-Modified", "Content-Length")]
    if not any(identity[:2]):
        _log.warning("%s has neither ETag nor Last-Modified: a stopped run can't resume", without_secrets(url))
        return [_THIS_RUN, identity[2]]
    return identity


def _ask(method: str, url: str) -> requests.Response:
    retry = Retry(
        total=_RETRIES, backoff_factor=_PAUSE, status_forcelist=_AGAIN, allowed_methods=None, raise_on_status=False
    )
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        try:
            answer = session.request(method, url, timeout=_PATIENCE, allow_redirects=True)
            answer.raise_for_status()
        except requests.RequestException as error:
            status = getattr(error.response, "status_code", None)
            raise SceneError(
                f"{without_secrets(url)} can't be read ({f'status {status}' if status else type(error).__name__})",
                fix="correct the address, or try again later",
            ) from error
    return answer


class PatientRaster:
    """A raster that is opened again if a read over http fails, a limited number of times.

    Args:
        path: the raster.
        remote: names under which GDAL opens its parts that are read over http(s).
    """

    def __init__(self, path: Path, remote: Sequence[str]) -> None:
        self.name, self._path, self._remote = str(path), path, remote
        self._source: DatasetReader = rasterio.open(path)

    @property
    def has_overviews(self) -> bool:
        """Whether a coarse view can be read without reading the whole raster."""
        return bool(self._source.overviews(1))

    def read(self, indexes: Sequence[int], **options: Any) -> npt.NDArray[np.uint16]:  # noqa: ANN401  # rasterio's
        """Read like `rasterio.io.DatasetReader.read`.

        Raises:
            RasterioIOError: it can't be read even after the retries.
        """
        for attempt in range(_RETRIES if self._remote else 0):
            try:
                return self._read(indexes, **options)
            except RasterioIOError as error:
                _log.warning("%s: %s; retry in %g s", self.name, error.__cause__ or error, _PAUSE * 2**attempt)
                time.sleep(_PAUSE * 2**attempt)
                self._reopen()
        return self._read(indexes, **options)

    def _read(self, indexes: Sequence[int], **options: Any) -> npt.NDArray[np.uint16]:  # noqa: ANN401
        pixels: npt.NDArray[np.uint16] = self._source.read(indexes, **options)
        return pixels

    def close(self) -> None:
        """Close it."""
        self._source.close()

    def _reopen(self) -> None:
        self._source.close()
        with rasterio.Env(**_FORGETTING):
            for name in self._remote:
                try:
                    rasterio.open(name).close()
                except RasterioIOError:  # closing has cleared the cache all the same; the next read reports the error
                    _log.debug("%s does not open", name)
        self._source = rasterio.open(self._path)


@contextmanager
def open_raster(path: Path, remote: Sequence[str]) -> Iterator[PatientRaster]:
    """Open a `PatientRaster`, and close it when the block ends."""
    raster = PatientRaster(path, remote)
    try:
        yield raster
    finally:
        raster.close()
