"""Choose the scenes of a composite by the ground that they show clear in the area of interest."""

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import rasterio.features
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry

from terraseg.acquire.config import AcquireConfig
from terraseg.acquire.imagery.catalogues import SourceScene
from terraseg.acquire.imagery.cloud_mask import clear_views
from terraseg.acquire.imagery.composite import access

_log = logging.getLogger(__name__)
_SIDE = 256
"""Largest side, in pixels, of the grid on which scenes are compared."""

_FINEST = 2
"""Smallest pixel of that grid, in pixels of the composite: the 20 m of the classification."""

_THREADS = 8
_Views = npt.NDArray[np.float32]


def choose_scenes(scenes: Sequence[SourceScene], *, geobox: GeoBox, config: AcquireConfig) -> list[SourceScene]:
    """At most ``scenes_per_tile`` scenes of each tile: each adds most to what the ones before it show clear.

    The n-th observation of a pixel counts 1 / n², about as much as the variance of a mean falls with it. So a sliver of
    a neighbouring orbit does not displace a whole scene, but a scene that fills a gap displaces a further repetition.
    Nothing is read if all scenes may stay and their cloud cover is known. Without the classification (empty
    ``mask.classes``) what a scene shows is its footprint, weighted by its share without clouds, which is 0 if unknown.

    Args:
        scenes: as `terraseg.acquire.imagery.catalogues.search` returns them.
        geobox: the grid of the composite.

    Returns:
        Scenes with their ``clear_cover``, from the most to the least clear; unchanged if nothing was read.

    Raises:
        CatalogueError: the classification can't be read.
    """
    tiles: dict[str, list[int]] = defaultdict(list)
    for position, scene in enumerate(scenes):
        tiles[scene.tile].append(position)
    known = all(scene.cloud_cover is not None for scene in scenes)
    if known and all(len(tile) <= config.scenes_per_tile for tile in tiles.values()):
        return list(scenes)
    coarse = geobox.zoom_out(max(_FINEST, math.ceil(max(geobox.shape) / _SIDE)))
    if config.mask.classes:
        _log.info("measuring the clear cover of %d scenes", len(scenes))
        classes = config.mask.classes
        clear = clear_views(scenes, geobox=coarse, masked_classes=classes, access=access(config), threads=_THREADS)
        scenes = [replace(scene, clear_cover=float(view.mean())) for scene, view in zip(scenes, clear, strict=True)]
        views = clear.astype(np.float32)
    else:
        views = np.stack([_footprint(scene, coarse) for scene in scenes])
    chosen = [tile[place] for tile in tiles.values() for place in _best(views[tile], config.scenes_per_tile)]
    ranked = sorted(chosen, key=lambda position: (-views[position].mean(), position))
    _log.info("%d of %d scenes go into the composite", len(ranked), len(scenes))
    return [scenes[position] for position in ranked]


def _footprint(scene: SourceScene, geobox: GeoBox) -> _Views:
    """Share of each pixel that a scene probably shows, by its footprint and its cloud cover."""
    area = Geometry(scene.footprint, "EPSG:4326").to_crs(str(geobox.crs), resolution=0.1).geom
    inside = rasterio.features.rasterize([area], out_shape=geobox.shape, transform=geobox.affine, dtype="float32")
    return np.asarray(inside * np.float32(0 if scene.cloud_cover is None else 1 - scene.cloud_cover / 100))


def _best(views: _Views, limit: int) -> list[int]:
    """Places of at most ``limit`` scenes, greedily; among equal ones the first."""
    left, chosen = list(range(len(views))), list[int]()
    seen = np.zeros(views.shape[1:], np.float32)
    while left and len(chosen) < limit:
        gains = [float((views[place] / (1 + seen) ** 2).sum()) for place in left]
        chosen.append(left.pop(int(np.argmax(gains))))
        seen += views[chosen[-1]]
    return chosen
