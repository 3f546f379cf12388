"""Getting data: `download` scenes and `labels`."""

import logging
from pathlib import Path

from terraseg.acquire.config import AcquireConfig, LabelsConfig
from terraseg.api.config import DATA_CONFIG, load_data_config
from terraseg.api.options import StrPath
from terraseg.errors import ConfigError

_log = logging.getLogger(__name__)


def download(
    *,
    aoi: StrPath,
    output: StrPath = "data/raw",
    config: StrPath | AcquireConfig = DATA_CONFIG,
    scheduler: str | None = None,
) -> list[Path]:
    """Download Sentinel-2 for an area of interest: a clean composite with its provenance.

    Args:
        aoi: polygon file of the area of interest.
        output: folder of the scenes; a scene is called ``<aoi>.tif``, or ``<aoi>_<period>.tif`` if there are several
            periods.
        config: data config; its section ``acquire`` is read.
        scheduler: address of a running Dask scheduler, ``tcp://HOST:PORT``; by default this machine does the work.

    Returns:
        The scenes, one for each period, in the order of the config.

    Raises:
        AOIError: the area can't be read, or is not a polygon.
        ConfigError: the config can't be read, or has no section ``acquire``.
        CatalogueError: the catalogue does not answer, or has no scene.
        SceneError: a scene can't be read.
        OutputError: the disk is full or the folder can't be written.
    """
    from terraseg.acquire.aoi import read_aoi
    from terraseg.acquire.imagery.catalogues import search
    from terraseg.acquire.imagery.choice import choose_scenes
    from terraseg.acquire.imagery.composite import write_composite

    settings = config if isinstance(config, AcquireConfig) else load_data_config(config).acquire
    if settings is None:
        raise ConfigError(f"{config} has no section acquire", fix="docs/data.md lists its keys")
    area = read_aoi(Path(aoi))
    # All periods are searched before the first pixel is read, so that an empty one is an error at once.
    found = {name: search(settings, area=area.footprint, period=period) for name, period in settings.periods.items()}
    scenes = []
    for name, sources in found.items():
        stem = area.name if len(found) == 1 else f"{area.name}_{name}"
        path = Path(output) / f"{stem}.tif"
        chosen = choose_scenes(sources, geobox=area.geobox, config=settings)
        scenes.append(write_composite(path, geobox=area.geobox, scenes=chosen, config=settings, scheduler=scheduler))
        _log.info("wrote %s from %d scenes", path, len(chosen))
    return scenes


def labels(
    *, aoi: StrPath, output: StrPath = "data/osm_buildings", config: StrPath | LabelsConfig = DATA_CONFIG
) -> Path:
    """Get footprints for an area of interest, cleaned, from OpenStreetMap or files.

    Args:
        aoi: polygon file of the area of interest.
        output: folder of the footprints; they are called ``<aoi>.parquet``.
        config: data config; its section ``labels`` is read.

    Returns:
        The file of the footprints; their completeness, if configured, lies in a folder beside it.

    Raises:
        AOIError: the area can't be read, or is not a polygon.
        ConfigError: the config can't be read.
        LabelError: a source has no footprint here, or can't be read.
        CatalogueError: the Overpass server does not answer.
        OutputError: the disk is full or the folder can't be written.
    """
    from terraseg.acquire.aoi import read_aoi
    from terraseg.acquire.footprints.completeness import COMPLETENESS_FOLDER, write_completeness
    from terraseg.acquire.footprints.sources import write_labels

    settings = config if isinstance(config, LabelsConfig) else load_data_config(config).labels
    area = read_aoi(Path(aoi))
    path = Path(output) / f"{area.name}.parquet"
    footprints = write_labels(path, area=area.geometry, config=settings)
    if settings.completeness is not None:
        write_completeness(
            path.parent / COMPLETENESS_FOLDER / path.name,
            area=area,
            footprints=footprints,
            config=settings.completeness,
        )
    return path
