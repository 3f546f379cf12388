"""Read the pixels of scenes in a catalogue, with retries."""

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import odc.stac
import planetary_computer
import pystac
import rasterio
import requests
from odc.geo.geobox import GeoBox
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from terraseg.acquire.imagery.catalogues import SourceScene
from terraseg.errors import CatalogueError, SceneError

# rasterio 1.4 warns about the target array of a warp although its transform is given.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning, module="rasterio.warp")

_log = logging.getLogger(__name__)
_FORGETTING = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/"}
"""GDAL caches failed and truncated responses as if they were the file; only this drops them, at the next close."""

_NOT_WORTH_A_RETRY = ("response code: 401", "response code: 403", "AccessDenied", "InvalidAccessKeyId", "Signature")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Access:
    """How to read the pixels of a catalogue.

    Attributes:
        signing: service that signs the addresses.
        gdal: GDAL options for reading.
        retries: number of retries of everything that is read together.
        backoff: seconds before the first retry.
    """

    signing: str | None
    gdal: Mapping[str, str | int]
    retries: int
    backoff: float


def retried(what: str, access: Access, read: Callable[[], _Answer]) -> _Answer:
    """What ``read`` returns, called again after a pause where the network or a file fails.

    Raises:
        CatalogueError: ``what`` can't be read after the retries, or access is denied.
    """
    attempt = 0
    while True:
        try:
            options = {**access.gdal, **(_FORGETTING if attempt else {})}
            with rasterio.Env(rasterio.session.DummySession(), **options):
                return read()
        except (RasterioError, OSError, requests.RequestException) as error:
            reason = " ".join(f"{error} {error.__cause__ or ''}".split())
            if any(sign in reason for sign in _NOT_WORTH_A_RETRY):
                raise CatalogueError(
                    f"access to the pixels is denied ({reason})", fix="check the credentials of the catalogue"
                ) from error
            if attempt == access.retries:
                raise CatalogueError(
                    f"{what} can't be read after {attempt + 1} attempts ({reason})",
                    fix="run the same command again later to resume, or leave the item out with acquire.exclude",
                ) from error
            pause = access.backoff * 2**attempt
            _log.warning("%s: %s; trying again in %g s", what, reason, pause)
            time.sleep(pause)
            attempt += 1


def load(
    scenes: Sequence[SourceScene],
    bands: Sequence[str],
    *,
    geobox: GeoBox,
    resampling: str = "nearest",
    access: Access,
    threads: int | None = None,
) -> list[npt.NDArray[np.uint16]]:
    """One stack (scene, row, column) per band, with scenes in the given order.

    Args:
        geobox: pixel grid to read onto.
        resampling: of the bands; the scene classification is always the nearest.
        threads: number of scenes to read at a time; None reads them one after the other.
    """
    items = []
    for scene in scenes:
        item = pystac.Item(
            id=scene.id,
            geometry=scene.footprint.__geo_interface__,
            bbox=list(scene.footprint.bounds),
            datetime=scene.time,
            properties={},
        )
        for name in bands:
            item.add_asset(name, pystac.Asset(scene.hrefs[name], media_type="image/tiff", roles=["data"]))
        items.append(item)
    cube = odc.stac.load(
        items,
        bands=list(bands),
        geobox=geobox,
        groupby=_place,
        resampling={"*": resampling, "SCL": "nearest"},
        dtype="uint16",
        nodata=0,
        patch_url=planetary_computer.sign if access.signing == "planetary-computer" else None,
        pool=threads,
    )
    # An offset added to the wrong scene would only show in the values.
    expected = [np.datetime64(scene.time.replace(tzinfo=None), "ns") for scene in scenes]
    if cube.time.values.astype("datetime64[ns]").tolist() != [time.astype(int) for time in expected]:
        raise SceneError("odc-stac returned the scenes of a block in another order", fix="install the locked version")
    return [cube[name].values for name in bands]


def _place(_item: pystac.Item, _parsed: object, index: int) -> int:
    """Group key that keeps every scene a layer of its own, in the given order."""
    return index
