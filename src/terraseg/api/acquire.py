"""Getting data: the `aoi` of a place, `download` scenes and `labels`, or `import_scene` from files."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ValidationError

from terraseg.acquire.config import AcquireConfig, LabelsConfig, VectorSource
from terraseg.acquire.imported.options import ImageOptions
from terraseg.api.config import DATA_CONFIG, load_data_config
from terraseg.api.options import Option, StrPath
from terraseg.core.settings import faults_of
from terraseg.errors import ConfigError

if TYPE_CHECKING:
    from terraseg.contracts.scene import Scene

_log = logging.getLogger(__name__)

_OWN = "your own footprints"

NOMINATIM = "https://nominatim.openstreetmap.org"
"""OpenStreetMap's search. Its usage policy allows one request a second."""


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


def aoi(
    place: str,
    *,
    output: StrPath = "aoi.geojson",
    box_km: Annotated[float | None, Option(metavar="N")] = None,
    url: str = NOMINATIM,
) -> Path:
    """Get the area of interest of a place by its name, from OpenStreetMap.

    Args:
        place: such as "Algiers, Algeria".
        output: GeoJSON file of the area.
        box_km: a square of N x N km around the place; by default the boundary of the place.
        url: address of a Nominatim server.

    Returns:
        The file, for the ``aoi`` of `download` and `labels`.

    Raises:
        AOIError: no such place, it has no boundary, or it is too large for one UTM zone.
        CatalogueError: the server can't be reached or answers with errors.
        ConfigError: a box without a size.
        OutputError: the file exists already, or can't be written.
    """
    from terraseg.acquire.place import write_place

    if box_km is not None and not box_km > 0:
        raise ConfigError(f"--box-km {box_km:g}", expected="a side of more than 0 km")
    write_place(Path(output), place=place, url=url.rstrip("/"), box_km=box_km)
    return Path(output)


def import_scene(
    input: StrPath,  # noqa: A002 -- the name of the option
    *,
    output: StrPath = "data/raw",
    name: str | None = None,
    options: ImageOptions = ImageOptions(),  # noqa: B008 -- it can't be changed
) -> "Scene":
    """Make a scene of a Sentinel-2 image that you have: a .SAFE product, HLS, an export, any GeoTIFF or VRT.

    What the files state is used. What they don't state is asked for in one message: bands, unit, date, level (L1C or
    L2A) and attribution; .SAFE and HLS state all of these. An option that contradicts the files or their values raises
    an error. If the same scene is already there, nothing happens.

    Args:
        input: a .SAFE folder or zip; a folder with the files of one HLS granule; a GeoTIFF or VRT; a folder with one
            GeoTIFF per band, named like it (..._B02.tif).
        output: folder of the scene.
        name: name of the scene; by default that of the product or file.
        options: facts that the files don't state, and how to resample and mask.

    Returns:
        The scene, with its provenance.

    Raises:
        SceneError: there is no image, a fact is missing, or the values contradict one.
        OutputError: another scene has this name, the disk is full, or the folder can't be written.
    """
    from terraseg.acquire.imported.scene import find_image, write_scene

    return write_scene(find_image(Path(input)), Path(output), options=options, name=name)


def labels(
    *,
    aoi: StrPath | None = None,
    output: StrPath = "data/osm_buildings",
    config: StrPath | LabelsConfig = DATA_CONFIG,
    input: Annotated[StrPath | None, Option(_OWN, metavar="FILE[:LAYER]")] = None,  # noqa: A002 -- the option's name
    coverage: Annotated[StrPath | None, Option(_OWN, metavar="FILE[:LAYER]")] = None,
    attribution: Annotated[str | None, Option(_OWN)] = None,
    licence: Annotated[str | None, Option(_OWN)] = None,
    extract_date: Annotated[str | None, Option(_OWN, metavar="DATE")] = None,
) -> Path:
    """Get footprints for an area of interest, cleaned, from OpenStreetMap or files.

    Args:
        aoi: polygon file of the area of interest; by default the coverage.
        output: folder of the footprints; they are called ``<aoi>.parquet``.
        config: data config; its section ``labels`` is read.
        input: your own vector file of footprints, instead of the config's source.
        coverage: polygons of the ground where the footprints of ``input`` are complete; outside it pixels are unknown,
            not background. By default they are complete in the whole ``aoi``.
        attribution: credit line of ``input``, for every product; required with it.
        licence: of ``input``, SPDX name.
        extract_date: day of the data of ``input``, YYYY-MM-DD.

    Returns:
        The file of the footprints; their completeness, if configured, lies in a folder beside it.

    Raises:
        AOIError: the area can't be read, or is not a polygon.
        ConfigError: the config can't be read, or options are missing or do not go together.
        LabelError: a source has no footprint here, or can't be read.
        CatalogueError: the Overpass server does not answer.
        OutputError: the disk is full or the folder can't be written.
    """
    from terraseg.acquire.aoi import read_aoi
    from terraseg.acquire.footprints.completeness import COMPLETENESS_FOLDER, write_completeness
    from terraseg.acquire.footprints.sources import write_labels

    if isinstance(config, LabelsConfig):
        settings = config
    elif input is not None and str(config) == DATA_CONFIG and not Path(config).is_file():
        settings = LabelsConfig()  # an own file needs no config
    else:
        settings = load_data_config(config).labels
    own = {"coverage": coverage, "attribution": attribution, "licence": licence, "extract_date": extract_date}
    given = {key: value for key, value in own.items() if value is not None}
    if input is not None:
        settings = settings.model_copy(update={"source": _own_file(input, given)})
    elif given:
        names = ", ".join(f"--{key.replace('_', '-')}" for key in given)
        raise ConfigError(f"{names} without --input", fix="name your file of footprints with --input")
    around = aoi or getattr(settings.source, "coverage", None)
    if around is None:
        raise ConfigError(
            "no area of interest",
            expected="the ground where footprints are known",
            fix="add --aoi, or --coverage with --input",
        )
    area = read_aoi(Path(around))
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


def _own_file(path: StrPath, about: Mapping[str, Any]) -> VectorSource:
    if "attribution" not in about:
        raise ConfigError(
            f"--input {path} needs a credit line, which every product carries",
            fix='add --attribution, such as --attribution "© City of Nantes"',
        )
    try:
        return VectorSource(kind="vector", path=Path(path), **about)
    except ValidationError as error:
        raise ConfigError(faults_of(error), fix="correct these options") from error
