"""The sections ``acquire`` and ``labels`` of configs/data_config.yaml; unknown keys are errors."""

import datetime as dt
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from terraseg.core.bands import PRITHVI_BANDS, band
from terraseg.core.settings import Strict

SCL_CLASSES = range(12)
"""Sen2Cor's scene classification, SCL (ESA, Sentinel-2 Products Specification): 0 nodata to 11 snow."""


NOT_STATED = "not stated"
"""Date or licence of footprints whose owner does not state it."""


class CatalogueConfig(Strict):
    """The catalogue to search for scenes.

    Attributes:
        name: a known catalogue, or ``custom`` for any STAC API with Sentinel-2 L2A.
        url: root of the STAC API. Required for ``custom``; for a known catalogue the address of a mirror.
        collection: id of the collection; required for ``custom``.
        assets: band name -> asset key, with ``SCL`` for the classification; required for ``custom``.
        offset: DN to add to every scene, for catalogues that break the rule of `terraseg.core.offsets`; ``rule``
            applies that rule.
    """

    name: Literal["earth-search", "planetary-computer", "cdse", "custom"] = "earth-search"
    url: str | None = None
    collection: str | None = None
    assets: dict[str, str] = Field(default_factory=dict)
    offset: Literal["rule"] | Annotated[int, Field(ge=-10000, le=0)] = "rule"

    @model_validator(mode="after")
    def _custom_is_complete(self) -> Self:
        if self.name == "custom" and not (self.url and self.collection and self.assets):
            raise ValueError("the catalogue `custom` needs url, collection and assets (such as {B02: blue, SCL: scl})")
        return self

    @field_validator("assets")
    @classmethod
    def _known_bands(cls, assets: dict[str, str]) -> dict[str, str]:
        return {name if name == "SCL" else band(name).name: key for name, key in assets.items()}


class Period(Strict):
    """First and last day of acquisition, both included."""

    start: dt.date
    end: dt.date

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.end < self.start:
            raise ValueError(f"the period ends ({self.end}) before it starts ({self.start})")
        return self


class MaskConfig(Strict):
    """Pixels to mask because they don't show the ground.

    Attributes:
        classes: SCL classes to mask; if empty, the classification is not read.
        dilation: number of 20 m pixels by which the masked area grows in each direction (a square), to cover the rims
            of clouds and shadows. Nodata and defective pixels (0, 1) don't grow.
        persistence: keep bright roofs that the classification calls cloud: what is cloud (8, 9) in at least this share
            of the dates that are clear around it, and of at least 3, is a roof. By default such roofs are masked.
    """

    classes: tuple[int, ...] = (0, 1, 3, 8, 9, 10, 11)
    dilation: int = Field(3, ge=0, le=50)
    persistence: float | None = Field(None, gt=0.5, le=1)

    @field_validator("classes")
    @classmethod
    def _known_classes(cls, classes: tuple[int, ...]) -> tuple[int, ...]:
        if unknown := sorted(set(classes) - set(SCL_CLASSES)):
            raise ValueError(f"SCL has no class {unknown}, expected 0 to 11")
        return tuple(sorted(set(classes)))


class AcquireConfig(Strict):
    """Scenes to composite.

    Attributes:
        periods: one composite is made per period; several periods are the frames of models of several dates.
        bands: names in any naming scheme, in file order.
        max_cloud_cover: of a scene, in percent.
        scenes_per_tile: largest number of scenes per tile and period; the least cloudy ones are used.
        exclude: ids of items to leave out.
        composite: the median of the clear observations, or the observation of the least cloudy scene.
        resampling: of 20 m and 60 m bands to 10 m, and of scenes from the neighbouring UTM zone. SCL: always nearest.
        offset_check: whether to raise an error or warn if the dark pixels of a scene contradict its offset.
        block: side of a block in pixels; memory grows with its square.
        workers: blocks at a time on this machine; more of them hide the latency of the catalogue but need more memory.
        retries: number of retries of a request or a block.
        backoff: seconds before the first retry, doubled with each further one.
        timeout: seconds that a request may take or stall.
    """

    catalogue: CatalogueConfig = CatalogueConfig()
    periods: dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")], Period] = Field(min_length=1)
    bands: tuple[str, ...] = PRITHVI_BANDS
    max_cloud_cover: float = Field(30.0, ge=0, le=100)
    scenes_per_tile: int = Field(8, ge=1)
    exclude: tuple[str, ...] = ()
    mask: MaskConfig = MaskConfig()
    composite: Literal["median", "least-cloudy"] = "median"
    resampling: Literal["nearest", "bilinear", "cubic"] = "bilinear"
    offset_check: Literal["raise", "warn"] = "raise"
    block: int = Field(704, ge=64, le=8192)
    workers: int = Field(2, ge=1)
    retries: int = Field(5, ge=0, le=20)
    backoff: float = Field(1.0, ge=0)
    timeout: float = Field(60.0, gt=0)

    @field_validator("bands")
    @classmethod
    def _esa_names(cls, bands: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(band(name).name for name in bands)
        if not names or len(set(names)) < len(names) or "B10" in names:
            raise ValueError(f"bands {bands}: expected at least one, none twice, and not B10 (it exists in L1C only)")
        return names


class OverpassSource(Strict):
    """OpenStreetMap through an Overpass API.

    Attributes:
        url: address of the API without ``/interpreter``.
        cache: folder for responses, so that no query is sent twice. Delete it to get newer data.
        timeout: seconds that the server may compute.
        retries: number of retries of a request.
        backoff: seconds before the first retry, doubled with each further one.
    """

    kind: Literal["overpass"] = "overpass"
    url: str = "https://overpass-api.de/api"
    cache: Path = Path("data/cache/overpass")
    timeout: float = Field(180.0, gt=0)
    retries: int = Field(4, ge=0, le=20)
    backoff: float = Field(15.0, ge=0)


class ExtractSource(Strict):
    """A local OpenStreetMap extract.

    Attributes:
        path: .osm.pbf or .osm file.
        extract_date: day of the data, as stated by the provider of the extract.
    """

    kind: Literal["extract"]
    path: Path
    extract_date: dt.date


class VectorSource(Strict):
    """Any vector file that GDAL reads.

    Attributes:
        path: ``FILE`` or ``FILE:LAYER``.
        layer: the same as in ``FILE:LAYER``; required if the file has several layers.
        coverage: polygons of the ground where the file is complete, ``FILE`` or ``FILE:LAYER``. Outside it nothing is
            known, so that pixels there are not background. By default the whole AOI.
        where: SQL condition on the columns, such as ``fclass = 'residential'``.
        id_column: column with object ids, to find objects that are listed twice.
        provider: who made the data; by default the credit line.
        extract_date: day of the data.
        licence: SPDX name.
        attribution: credit line for every product.
    """

    kind: Literal["vector"]
    path: Path
    layer: str | None = None
    coverage: Path | None = None
    where: str | None = None
    id_column: str | None = None
    provider: str | None = None
    extract_date: dt.date | None = None
    licence: str = NOT_STATED
    attribution: str = Field(min_length=1)


class GeoParquetSource(Strict):
    """Open building footprints as GeoParquet. Only footprints that intersect the AOI are kept in memory.

    Attributes:
        location: a file, a folder of files, or the http(s) address of a file.
        provider: who made the data; this determines licence and attribution.
        extract_date: day of the release.
        min_confidence: lowest ``confidence`` (a column of Google's and Overture's data), 0 to 1; objects without one
            are kept.
    """

    kind: Literal["geoparquet"]
    location: str
    provider: Literal["overture", "google", "microsoft"]
    extract_date: dt.date
    min_confidence: float = Field(0.0, ge=0, le=1)


FootprintConfig = Annotated[
    OverpassSource | ExtractSource | VectorSource | GeoParquetSource, Field(discriminator="kind")
]


class BuiltUpRaster(Strict):
    """A raster of built-up land, such as WorldCover (class 50) or GHSL. Set either ``above`` or ``classes``.

    Attributes:
        path: any raster that GDAL reads, in any CRS.
        above: pixels with a greater value are built-up.
        classes: pixels with one of these values are built-up.
        full_share: share of built-up land that complete labels cover; by default that of the best-mapped cells.
    """

    kind: Literal["raster"]
    path: Path
    above: float | None = None
    classes: tuple[int, ...] = ()
    full_share: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.above is None) == (not self.classes):
            raise ValueError("a built-up raster needs either `above` or `classes`")
        return self


class CompletenessConfig(Strict):
    """How the labels are compared with a reference, cell by cell.

    Attributes:
        reference: a second source of footprints, or a built-up raster.
        cell: side of a cell in metres, a multiple of 10.
        reach: labels count if they lie within this distance of the reference's footprints, in metres; not used with a
            raster.
    """

    reference: Annotated[VectorSource | GeoParquetSource | BuiltUpRaster, Field(discriminator="kind")]
    cell: int = Field(640, ge=10, multiple_of=10)
    reach: float = Field(20.0, ge=0)

    @model_validator(mode="after")
    def _reference_is_everywhere(self) -> Self:
        if isinstance(self.reference, VectorSource) and self.reference.coverage is not None:
            raise ValueError("a reference has no coverage: remove the key, and choose an AOI within it")
        return self


class LabelsConfig(Strict):
    """Footprints to learn from.

    Attributes:
        class_name: class of the polygons.
        tags: OpenStreetMap key -> values of the class (or true for any value).
        source: the source of the footprints.
        completeness: how to measure the completeness of the footprints; by default it is not measured.
    """

    class_name: str = "building"
    tags: dict[str, Literal[True] | tuple[str, ...]] = Field({"building": True}, min_length=1)
    source: FootprintConfig = OverpassSource()
    completeness: CompletenessConfig | None = None
