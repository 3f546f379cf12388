"""The two verbs of this room: `download` scenes and `labels`."""

import logging
from pathlib import Path

from terraseg.acquire.aoi import read_aoi
from terraseg.acquire.config import AcquireConfig, LabelsConfig
from terraseg.acquire.footprints.completeness import COMPLETENESS_FOLDER, write_completeness
from terraseg.acquire.footprints.sources import write_labels
from terraseg.acquire.imagery.catalogues import search
from terraseg.acquire.imagery.composite import write_composite

_log = logging.getLogger(__name__)


def download(*, aoi: Path, output: Path, config: AcquireConfig, scheduler: str | None = None) -> list[Path]:
    """Composite the scenes over an area into ``output/<aoi>.tif``, or ``<aoi>_<period>.tif`` where there are several.

    Args:
        aoi: vector file of the area.
        output: folder of scenes (contract 1).
        scheduler: address of a Dask scheduler; None: this machine.

    Returns:
        The scenes, one a period, in the order of the config.

    Raises:
        AOIError, CatalogueError, ConfigError, SceneError, OutputError: as the parts say.
    """
    area = read_aoi(aoi)
    # All periods are searched before the first pixel is read, so that an empty one is told at once.
    found = {name: search(config, area=area.footprint, period=period) for name, period in config.periods.items()}
    scenes = []
    for name, sources in found.items():
        stem = area.name if len(found) == 1 else f"{area.name}_{name}"
        path = output / f"{stem}.tif"
        scenes.append(write_composite(path, geobox=area.geobox, scenes=sources, config=config, scheduler=scheduler))
        _log.info("wrote %s from %d scenes", path, len(sources))
    return scenes


def labels(*, aoi: Path, output: Path, config: LabelsConfig) -> Path:
    """Write the footprints of an area to ``output/<aoi>.parquet`` (contract 2), and their completeness if configured.

    Raises:
        AOIError, LabelError, CatalogueError, OutputError: as the parts say.
    """
    area = read_aoi(aoi)
    path = output / f"{area.name}.parquet"
    footprints = write_labels(path, area=area.geometry, config=config)
    if config.completeness is not None:
        write_completeness(
            output / COMPLETENESS_FOLDER / path.name, area=area, footprints=footprints, config=config.completeness
        )
    return path
