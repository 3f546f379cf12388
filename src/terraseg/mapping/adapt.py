"""Adapt a trained model to another city with few labels there: its probabilities and threshold, not its weights.

Another city has another share of built-up land, other roofs and another atmosphere, so that a model from elsewhere may
rank pixels well and still map twice the area. Slope and intercept of its log-odds repair that, and two numbers need few
labels. They are fitted by the method of a training's end, on the labelled ground instead of the validation split.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from safetensors.numpy import load_file
from scipy.special import expit

from terraseg.contracts.bundle import INFO, SHARE_TARGET, Bundle, BundleInfo, write_bundle
from terraseg.contracts.dataset import IGNORE
from terraseg.contracts.footprints import find_footprints
from terraseg.contracts.scene import Place
from terraseg.core.files import refuse_foreign
from terraseg.core.windows import default_overlap
from terraseg.errors import ConfigError, LabelError
from terraseg.learn.training.calibration import (
    Counts,
    Odds,
    count_levels,
    count_odds,
    count_shares,
    fit_odds,
    fit_threshold,
)
from terraseg.mapping.inputs.scenes import places_at, room_for_inputs
from terraseg.mapping.outputs.layers import LOGITS, PROBABILITY, Layer
from terraseg.mapping.runtimes.pytorch import TorchPredictor
from terraseg.mapping.scene import predict_scene
from terraseg.prepare.config import PrepareConfig
from terraseg.prepare.labels.of_scene import SceneLabels, labels_of
from terraseg.prepare.labels.rasterize import centres, coverage, inside_area, make_mask
from terraseg.prepare.plan import ground_of
from terraseg.prepare.split_blocks import Rect

_log = logging.getLogger(__name__)

_BATCH = 8


@dataclass(frozen=True)
class Adaptation:
    """What the labelled ground changed.

    Attributes:
        bundle: the adapted bundle.
        pixels: labelled pixels.
        share: their true share of the class.
        before: the mean probability there of the model as it was.
        after: the same after the adaptation.
    """

    bundle: Bundle
    pixels: int
    share: float
    before: float
    after: float


def adapt(
    bundle: Bundle,
    *,
    scenes: Sequence[str | Path],
    labels: str | Path,
    output: Path,
    config: PrepareConfig,
    device: str = "auto",
) -> Adaptation:
    """Fit slope, intercept and threshold of a bundle to labelled ground, and write the adapted bundle.

    The scenes are mapped twice: the threshold is fitted on the map that the new slope and intercept give.

    Args:
        bundle: the trained model.
        scenes: scenes with labelled ground, as for `predict`.
        labels: footprint files or their folder. Their extent says where buildings are known; all of it is used.
        output: folder of the adapted bundle.
        config: its label rule and completeness count.
        device: as for `predict`.

    Raises:
        ConfigError: the model has more than two classes, or ``output`` is the model.
        LabelError: no labelled ground lies in the scenes, or it has only one class.
        SceneError: a scene can't be read or does not fit the model.
        OutputError: ``output`` holds other files, or the bundle can't be written.
    """
    if output.resolve() == bundle.root.resolve():
        raise ConfigError(f"{output} is the model to adapt", fix="choose another --output")
    refuse_foreign(output, mark=INFO)
    if len(bundle.info.classes) > 2:
        raise ConfigError(
            f"{bundle.root} maps {len(bundle.info.classes)} classes", expected="a model of two", fix="train it further"
        )
    info, sources = bundle.info, find_footprints(labels)[1]
    class_name = sources[0].class_name
    credit = "; ".join(dict.fromkeys([info.attribution, *(source.attribution for source in sources)]))
    odds: Counts = np.zeros((2, 1))
    levels: Counts = np.zeros((2, 1))
    before = after = 0.0
    with room_for_inputs() as folder, tempfile.TemporaryDirectory() as scratch:
        places = places_at(
            scenes, folder, frames=info.dates, gsd=info.gsd, resampling=info.processing.resampling, bands=info.bands
        )
        ground = [(place, labels_of(place[0], labels, sources, config)) for place in places]

        for values, mask, percent in _labelled(ground, bundle, LOGITS, Path(scratch) / "1", config, device=device):
            every = np.ones_like(values)
            shares = info.target == SHARE_TARGET
            counted = count_shares(values, percent, every) if shares else count_odds(values, mask, every, positive=1)
            odds = odds + counted
            before += float(expit(values).sum())
        background, own = odds.sum(axis=1)
        if min(background, own) == 0:
            raise LabelError(
                f"the labelled ground has {own:.0f} px of {class_name} and {background:.0f} px without it",
                expected="some of both",
                fix="label ground that has both",
            )
        slope, intercept = fit_odds(odds)
        name = output.parent.name if output.name == "bundle" else output.name
        update: dict[str, object] = {"slope": info.slope * slope, "intercept": info.intercept * slope + intercept}
        update["share_intervals"] = ()  # they are of the old slope, and of other ground
        info = info.model_copy(update={**update, "experiment": name, "attribution": credit})
        draft = _written(bundle, Path(scratch) / "bundle", info)

        for values, mask, _ in _labelled(ground, draft, PROBABILITY, Path(scratch) / "2", config, device=device):
            levels = levels + count_levels(values, mask, positive=1)
            after += float(values.sum())
    threshold, _ = fit_threshold(levels)
    adapted = _written(bundle, output, info.model_copy(update={"threshold": threshold}))
    pixels = float(background + own)
    found = Adaptation(adapted, round(pixels), float(own) / pixels, before / pixels, after / pixels)
    _log.info(
        "%d labelled px, %.2f %% %s; mean probability there: %.2f %%, was %.2f %%; threshold: %.3f, was %.3f",
        found.pixels, 100 * found.share, class_name, 100 * found.after, 100 * found.before, threshold,
        bundle.info.threshold,
    )  # fmt: skip
    return found


def _labelled(
    ground: Sequence[tuple[Place, SceneLabels]],
    bundle: Bundle,
    layer: Layer,
    output: Path,
    config: PrepareConfig,
    *,
    device: str,
) -> Iterator[tuple[Odds, npt.NDArray[np.int8], npt.NDArray[np.uint8]]]:
    """Map places; yield the labelled pixels of each block, (pixels,) each: values of a layer, mask, covered percent."""
    predictor, crop = TorchPredictor(bundle, device=device), bundle.info.tile_size
    for place, labels in ground:
        tree = shapely.STRtree(labels.shapes)
        product = predict_scene(
            place, predictor, output, crop=crop, overlap=default_overlap(crop), batch_size=_BATCH,
            threshold=bundle.info.threshold, logits=layer is LOGITS,
        )  # fmt: skip
        with rasterio.open(layer.path(product)) as source:
            for _, window in source.block_windows(1):
                dn = source.read(1, window=window)
                top, left = window.row_off, window.col_off
                rect = Rect(top, left, top + window.height, left + window.width)
                shapes = labels.shapes[tree.query(ground_of(place[0], rect))]
                mask, percent = _labels_in(labels, shapes, rect, source.transform, config, seen=dn != layer.nodata)
                known = mask != IGNORE
                yield dn[known] * np.float32(layer.scale), mask[known], percent[known]


def _labels_in(
    labels: SceneLabels,
    shapes: npt.NDArray[np.object_],
    window: Rect,
    transform: Affine,
    config: PrepareConfig,
    *,
    seen: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint8]]:
    """Mask and coverage of a window that some shapes touch, as `make_mask` makes them."""
    known = seen & inside_area(labels.extent, window=window, transform=transform)
    if config.completeness:
        poor = labels.cells[labels.shares < config.completeness.least_share]
        known &= ~centres(poor, window=window, transform=transform)
    share = coverage(shapes, window=window, transform=transform)
    inside = centres(shapes, window=window, transform=transform)
    return make_mask(share, inside, rule=config.label_rule, known=known)


def _written(bundle: Bundle, root: Path, info: BundleInfo) -> Bundle:
    """The weights of a bundle with other metadata."""
    config = (bundle.root / "config.yaml").read_text(encoding="utf-8")
    written = write_bundle(root, info=info, weights=load_file(bundle.weights), config=config)
    return replace(bundle, root=written.root, info=written.info)
