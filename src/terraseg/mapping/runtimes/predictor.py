"""The interface between mapping and a model on any runtime, and the checks that the model fits a scene."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from terraseg.contracts.dataset import SceneStats
from terraseg.contracts.imagery.processing import Processing, processing_of
from terraseg.contracts.scene import NODATA, Place, Scene, group_places
from terraseg.contracts.statistics import scene_stats
from terraseg.core.bands import UNIT, band, band_indices
from terraseg.errors import CheckpointError, ConfigError, SceneError
from terraseg.mapping.inputs.remote import PatientRaster, open_raster
from terraseg.mapping.inputs.vrt import remote_sources

_log = logging.getLogger(__name__)

_SAMPLE = 256
"""Longer side of the coarse sample of a scene's values, in pixels."""

_ROWS = 32
"""Rows to sample if the file has no overviews."""

_IMPLAUSIBLE = 20.0
"""If a scene's values differ from the model's statistics by more than this factor, the unit must be wrong."""

_OTHERWISE = {
    "resampling": "map its STAC item, whose bands are read as in training; or download it with the same "
    "acquire.resampling",
    "level": "map scenes of the training's level, or train on this level",
    "offset": "download the scene again with the offset removed, or train on scenes without it",
}
"""What to do if a fact of `Processing` differs."""

_TAKEN_CROPS: WeakKeyDictionary["Predictor", set[int]] = WeakKeyDictionary()
"""Crop sizes already tried with a model: a thousand small scenes should not cost a forward pass each."""


class Predictor(Protocol):
    """A model of one class, or of several. It is hashable, and equal only to itself."""

    @property
    def bands(self) -> tuple[str, ...]:
        """ESA names in the order of its input, the same for each date."""

    @property
    def frames(self) -> int:
        """Number of dates of a place in one input of its training."""

    @property
    def dates(self) -> tuple[int, int | None]:
        """Fewest and most dates of a place that it takes; None: any number."""

    @property
    def unit(self) -> str:
        """Unit of its input, `terraseg.core.bands.UNIT`."""

    @property
    def nodata(self) -> float:
        """Input value of pixels without an observation."""

    @property
    def gsd(self) -> float:
        """Pixel size of its training data, in metres."""

    @property
    def processing(self) -> Processing:
        """What the scenes of its training data have in common."""

    @property
    def means(self) -> tuple[float, ...]:
        """Mean of each band over all dates of its training data, in DN."""

    @property
    def by_scene(self) -> bool:
        """Whether it must be `standardised_by` the statistics of the place that it maps."""

    def standardised_by(self, stats: SceneStats, *, where: object) -> "Predictor":
        """The same model with the statistics of a place, see `place_stats`. It shares everything else.

        Args:
            stats: of the place.
            where: the place, for the message.

        Raises:
            SceneError: a band is constant in the place.
        """

    @property
    def class_id(self) -> int:
        """Value of its class in mask.tif; all other pixels are 0."""

    @property
    def class_name(self) -> str:
        """Name of its class."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes by id, if there are more than two: then each pixel gets the most probable one."""

    @property
    def licence(self) -> str:
        """Licence of the model and its weights."""

    @property
    def attribution(self) -> str:
        """The attribution that its maps must carry."""

    @property
    def provenance(self) -> dict[str, Any]:
        """JSON that identifies it and its runtime: every setting that may change a pixel."""

    @property
    def workers(self) -> int:
        """Number of calls it serves at once. Together they should use all cores of the process, and no more."""

    def enter_worker(self) -> None:
        """Called once in each of several threads that will call it."""

    def __call__(self, pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        """Raw DN (batch, frames x bands, rows, columns), the first date first, to log-odds (batch, rows, columns)."""

    def probabilities(self, pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        """The same pixels to the probability of each class, (batch, classes, rows, columns), which add up to 1."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn a failed read in the block into an error that helps the user.

    Raises:
        SceneError: GDAL can't read the file.
    """
    try:
        yield
    except RasterioIOError as error:
        raise SceneError(
            f"{path} can't be read ({error.__cause__ or error})",
            fix="download it again; the file is damaged or cut off",
        ) from error


def place_stats(place: Place, bands: Sequence[str]) -> SceneStats:
    """The statistics of a place, by the same function as those of the training's scenes.

    Raises:
        SceneError: a scene lacks a band or can't be read.
    """
    with ExitStack() as stack:
        dates = []
        for scene in place:
            stack.enter_context(readable(scene.path))
            raster = stack.enter_context(open_raster(scene.path, remote_sources(scene.path)))
            dates.append((raster, [k + 1 for k in band_indices(bands, scene.bands, where=str(scene.path))]))
        return scene_stats(dates, bands=bands, shape=(place[0].geobox.shape.y, place[0].geobox.shape.x))


def check_fit(place: Place, predictor: Predictor, *, crop: int) -> None:
    """Check that a model fits the scenes of a place, and that it takes a crop.

    Raises:
        SceneError: wrong number of dates, missing band, wrong unit or GSD, values that contradict the declared unit, or
            another resampling, level or offset state than in training. One that is unknown is a warning.
        ConfigError: the model can't take crops of this size.
        CheckpointError: it returns something other than a map of log-odds.
    """
    _check_dates(place, predictor)
    for scene in place:
        _check_scene(scene, predictor)
    taken = _TAKEN_CROPS.setdefault(predictor, set())
    if crop not in taken:
        _check_crop(predictor, crop)
        taken.add(crop)


def _check_dates(place: Place, predictor: Predictor) -> None:
    fewest, most = predictor.dates
    if not fewest <= len(place) <= (most or len(place)):
        raise SceneError(
            f"{place[0].name} has {len(place)} date{'s' * (len(place) > 1)}",
            expected=f"{most}, as in training" if fewest == most else f"{fewest} to {most}, as in the export",
            fix=None if fewest == most else "--runtime torch",
        )
    if group_places(place, frames=len(place)) != [place]:
        raise SceneError(
            f"the dates of {place[0].name} are in the order {', '.join(str(scene.day) for scene in place)}",
            expected="the first date first, as in training",
        )


def _check_scene(scene: Scene, predictor: Predictor) -> None:
    indexes = _indexes(scene, predictor)
    if predictor.unit != UNIT or predictor.nodata != NODATA:
        raise SceneError(
            f"{scene.path} has unit {UNIT} and nodata {NODATA}, "
            f"the model takes {predictor.unit} and {predictor.nodata:g}",
            expected="a model that was trained on terraseg's scenes",
        )
    if abs(scene.gsd / predictor.gsd - 1) > 0.1:
        raise SceneError(
            f"{scene.path} has pixels of {scene.gsd:g} m, the model was trained at {predictor.gsd:g} m",
            expected="pixel sizes within 10 %",
            fix="resample the scene, or train at its resolution",
        )
    _check_processing(scene, predictor)
    _check_values(scene, predictor, indexes)


def _check_processing(scene: Scene, predictor: Predictor) -> None:
    """Check that the scene was made as those of the training."""
    here, there = processing_of(scene.item["properties"]), predictor.processing
    resampled = any(band(name).gsd > predictor.gsd * 1.1 for name in predictor.bands)
    unknown = []
    for key, fix in _OTHERWISE.items():
        found, trained = getattr(here, key), getattr(there, key)
        if key == "resampling" and not resampled:
            continue
        if found is None or trained is None:
            unknown.append(key)
        elif found != trained:
            raise SceneError(
                f"{scene.path} has the {key} {found}, the model was trained on {trained}",
                expected=f"{key} {trained}",
                fix=fix,
            )
    if unknown:
        _log.warning("%s: %s unknown for the scene or the model, so not compared", scene.path, ", ".join(unknown))


def _indexes(scene: Scene, predictor: Predictor) -> list[int]:
    """Positions of the model's bands in the scene."""
    try:
        for name in predictor.bands:
            band(name)
    except SceneError as error:
        raise SceneError(
            f"the model is for another sensor: it takes {', '.join(predictor.bands)}",
            expected=f"bands of Sentinel-2, such as those of {scene.path} ({', '.join(scene.bands)})",
            fix="choose a model that was trained on terraseg's scenes",
        ) from error
    return band_indices(predictor.bands, scene.bands, where=str(scene.path))


def _check_values(scene: Scene, predictor: Predictor, indexes: list[int]) -> None:
    height, width = scene.geobox.shape
    with readable(scene.path), open_raster(scene.path, remote_sources(scene.path)) as source:
        sample = _sample(source, indexes, height=height, width=width)
    valid = sample[:, np.all(sample != NODATA, axis=0)]
    if valid.shape[1] == 0:
        _log.warning("%s: a coarse sample has no valid pixel", scene.path)
        return
    # Water is dark in some bands, snow bright in others: only a factor in most bands means another unit.
    ratio = float(np.median(np.median(valid, axis=1) / np.asarray(predictor.means)))
    if valid.max() <= 1 or not 1 / _IMPLAUSIBLE <= ratio <= _IMPLAUSIBLE:
        raise SceneError(
            f"{scene.path} has values around {np.median(valid):g} DN (at most {valid.max()}), "
            f"{ratio:.2g} times those of the training data",
            expected="reflectance = DN x 1e-4, as declared",
            fix="check the scene's unit and offset, and download it again",
        )


def _sample(source: PatientRaster, indexes: list[int], *, height: int, width: int) -> npt.NDArray[np.uint16]:
    """(bands, rows, columns): every k-th pixel; from a few rows if a file without overviews would be read whole."""
    step = max(height, width, _SAMPLE) / _SAMPLE
    rows, columns = -(-height // step), -(-width // step)
    bands = [index + 1 for index in indexes]
    if step == 1 or source.has_overviews:
        return source.read(bands, out_shape=(len(bands), int(rows), int(columns)))
    places = np.linspace(0, height - 1, min(_ROWS, height)).astype(int)
    lines = [Window(0, int(row), width, 1) for row in places]
    return np.hstack([source.read(bands, window=line, out_shape=(len(bands), 1, int(columns))) for line in lines])


def _check_crop(predictor: Predictor, crop: int) -> None:
    bright = np.tile(np.clip(np.asarray(predictor.means), 1, np.iinfo(np.uint16).max), predictor.frames)
    pixels = np.empty((1, len(bright), crop, crop), np.uint16)
    pixels[:] = bright[:, None, None]
    try:
        logits = predictor(pixels)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"the model can't take crops of {crop} px ({reason})",
            expected="the training size, or a multiple of the model's patch",
            fix="leave --crop out",
        ) from error
    if logits.shape != (1, crop, crop):
        raise CheckpointError(
            f"the model returns shape {logits.shape} for a crop of {crop} px", expected=f"(1, {crop}, {crop})"
        )
    if np.isnan(logits).any():
        raise CheckpointError("the model returns NaN", fix="train again; the run has diverged")
