"""Maps of a scene: imagery, label, prediction and error on the same pixels, and a map of the splits.

Of a large scene every n-th pixel is drawn, the same ones in all layers, so that resampling causes no errors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import OffsetFrom
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]
from rasterio.windows import Window

from terraseg.assess.ground.chip_truth import chips
from terraseg.assess.ground.pairs import Labels, Scores, offset
from terraseg.assess.ground.predictions import Prediction
from terraseg.contracts.dataset import IGNORE, SPLITS, ChipDataset
from terraseg.contracts.product import MASK_NODATA, PROBABILITY_NODATA, threshold_level
from terraseg.contracts.scene import NODATA, Scene
from terraseg.core.bands import band_indices
from terraseg.core.palette import as_hex, class_colours
from terraseg.errors import SceneError
from terraseg.report.style import CLASS, FALSE_ALARM, GREY, HIT, MISS, SPLIT_COLOURS, STRIPE, new_axes, new_figure

_LARGEST = 1600  # pixels a side of a layer

Picture = npt.NDArray[np.float32]
"""(rows, columns, 3), 0 to 1."""


@dataclass(frozen=True)
class View:
    """A window of a scene in pixels, drawn in steps."""

    scene: Scene
    window: Window

    @property
    def step(self) -> int:
        """One pixel in this many is drawn, along each axis."""
        return max(1, int(np.ceil(max(self.window.height, self.window.width) / _LARGEST)))

    @property
    def shape(self) -> tuple[int, int]:
        """Drawn rows and columns."""
        return self.window.height // self.step, self.window.width // self.step

    @property
    def metres(self) -> float:
        """Size of a drawn pixel, in metres."""
        return self.step * self.scene.gsd

    def read(self, source: rasterio.DatasetReader, band: int = 1) -> npt.NDArray[np.generic]:
        """The drawn pixels of a raster on the scene's grid: the middle pixel of each step x step."""
        rows, columns = self.shape
        window = Window(self.window.col_off, self.window.row_off, columns * self.step, rows * self.step)
        pixels: npt.NDArray[np.generic] = source.read(band, window=window, out_shape=self.shape)
        return pixels


def whole(scene: Scene) -> View:
    """The whole scene."""
    rows, columns = scene.geobox.shape
    return View(scene, Window(0, 0, columns, rows))


def richest_block(scene: Scene, dataset: ChipDataset, *, split: str) -> View:
    """The block of a split with most pixels of the class, including all its chips."""
    tiles = dataset.tiles
    tiles = tiles[(tiles["split"] == split) & (tiles["scene"] == scene.name)]
    best = tiles.groupby("block")["class_fraction"].sum().idxmax()
    tiles, size = tiles[tiles["block"] == best], dataset.info.tile_size
    top, left = int(tiles["row"].min()), int(tiles["column"].min())
    rows, columns = scene.geobox.shape
    bottom = min(int(tiles["row"].max()) + size, rows)
    right = min(int(tiles["column"].max()) + size, columns)
    return View(scene, Window(left, top, right - left, bottom - top))


def label_map(view: View, dataset: ChipDataset) -> Labels:
    """(rows, columns) class ids of the chips of all splits; `IGNORE` if unknown or outside all chips."""
    rows, columns = view.shape
    labels = np.full((rows, columns), IGNORE, dtype=np.int8)
    middle = view.step // 2
    for split in SPLITS:
        for chip in chips(dataset, split=split, scene=view.scene.name):
            height, width = chip.truth.shape
            down = (np.arange(rows) * view.step + middle + view.window.row_off) - chip.row
            right = (np.arange(columns) * view.step + middle + view.window.col_off) - chip.column
            here, there = np.flatnonzero((down >= 0) & (down < height)), np.flatnonzero((right >= 0) & (right < width))
            part = chip.truth[np.ix_(down[here], right[there])]
            place = np.ix_(here, there)
            labels[place] = np.where(part >= 0, part, labels[place])
    return labels


def shown_class(dataset: ChipDataset, predictions: Sequence[Prediction]) -> int:
    """Id of the class of the predictions; class 1 if no prediction names its class.

    Raises:
        SceneError: the predictions have several classes, or one that the dataset lacks.
    """
    ids = {name: number for number, name in dataset.info.classes.items()}
    names = sorted({name for one in predictions if (name := one.get("class")) is not None})
    if len(names) > 1 or not set(names) <= set(ids):
        raise SceneError(
            f"the predictions are of class {', '.join(names)}, but {dataset.root} has {', '.join(ids)}",
            expected="predictions of one class of the dataset",
            fix="keep the results of each class in a separate folder",
        )
    return ids[names[0]] if names else 1


def class_colours_of(dataset: ChipDataset, predictions: Sequence[Prediction]) -> dict[str, str]:
    """Colour (as hex) of each class by name, if dataset and predictions have more than two; else empty."""
    names = [dataset.info.classes[number] for number in sorted(dataset.info.classes)]
    several = len(names) > 2 and all(prediction.class_names for prediction in predictions)
    return dict(zip(names, map(as_hex, class_colours(names)), strict=True)) if several else {}


def mapped_ids(view: View, prediction: Prediction) -> tuple[Labels, npt.NDArray[np.bool_]]:
    """Class ids of a map of several classes, and true where there is a prediction."""
    ids = _on_view(view, prediction.product.mask)
    return ids.astype(np.int8), ids != MASK_NODATA


def comparison(view: View, dataset: ChipDataset, predictions: Sequence[Prediction], *, title: str) -> Figure:
    """Imagery and label, with prediction and error (hit, miss, false alarm) of each experiment, side by side.

    A tall area has all of them in one row, a wide area one row per experiment.

    Raises:
        SceneError: see `shown_class` and `mapped_class`.
    """
    picture, labels, positive = imagery(view), label_map(view, dataset), shown_class(dataset, predictions)
    base, classes = _faded(picture), class_colours_of(dataset, predictions)
    shown = by_colour(labels, classes) if classes else {CLASS: labels == positive}
    ground = [("Imagery", picture), ("Label", _paint(base, shown, unknown=labels == IGNORE))]
    by_model = [_layers(view, base, labels, one, positive=positive, classes=classes) for one in predictions]
    rows, columns = view.shape
    if rows > columns:
        panels = [[*ground, *(layer for layers in by_model for layer in layers)]]
        width = 2.1
    else:
        panels = [[*ground, *layers] for layers in by_model]
        width = 3.6
    height = width * rows / columns
    figure = new_figure(width * len(panels[0]) + 0.2, len(panels) * (height + 0.27) + 0.6)
    grid = new_axes(figure, len(panels), len(panels[0]))
    for axes, layers in zip(grid, panels, strict=True):
        for axis, (heading, layer) in zip(axes, layers, strict=True):
            _show(axis, layer)
            axis.set_title(heading, fontsize=9)
    _scale_bar(grid[0][0], view)
    _north_arrow(grid[0][0])
    figure.suptitle(title, x=0.005, ha="left", fontsize=11, fontweight="bold")
    if classes:
        keys = {**classes, "right": HIT, "wrong": FALSE_ALARM}
    else:
        keys = {dataset.info.classes[positive]: CLASS, "hit": HIT, "miss": MISS, "false alarm": FALSE_ALARM}
    handles = [Patch(color=colour, label=label) for label, colour in keys.items()]
    handles.append(Patch(fc="white", ec=STRIPE, hatch="////", lw=0.5, label="unknown, or in no chip"))
    figure.legend(handles=handles, loc="outside lower right", ncols=min(len(handles), 6), fontsize=8)
    return figure


def by_colour(ids: Labels, classes: Mapping[str, str]) -> dict[str, npt.NDArray[np.bool_]]:
    """Where each class is, by its colour."""
    return {colour: ids == number for number, colour in enumerate(classes.values())}


def _layers(
    view: View, base: Picture, labels: Labels, prediction: Prediction, *, positive: int, classes: Mapping[str, str]
) -> list[tuple[str, Picture]]:
    if classes:
        ids, known = mapped_ids(view, prediction)
        scored, right = known & (labels != IGNORE), ids == labels
        return [
            (prediction.experiment, _paint(base, by_colour(ids, classes), unknown=~known)),
            (
                f"{prediction.experiment}: error",
                _paint(base, {HIT: scored & right, FALSE_ALARM: scored & ~right}, unknown=~scored),
            ),
        ]
    mapped, known = mapped_class(view, prediction)
    truth, scored = labels == positive, known & (labels != IGNORE)
    error = {HIT: truth & mapped, MISS: truth & ~mapped, FALSE_ALARM: ~truth & mapped}
    return [
        (prediction.experiment, _paint(base, {CLASS: mapped}, unknown=~known)),
        (f"{prediction.experiment}: error", _paint(base, error, unknown=~scored)),
    ]


def split_ground(view: View, dataset: ChipDataset, *, split: str) -> npt.NDArray[np.bool_]:
    """(rows, columns) true at the chips of a split, for the view of a whole scene."""
    covered = np.zeros(view.shape, dtype=bool)
    side = dataset.info.tile_size / view.step
    tiles = dataset.tiles[(dataset.tiles["scene"] == view.scene.name) & (dataset.tiles["split"] == split)]
    for row, column in zip(tiles["row"] / view.step, tiles["column"] / view.step, strict=True):
        covered[round(row) : round(row + side), round(column) : round(column + side)] = True
    return covered


def split_map(view: View, dataset: ChipDataset) -> Figure:
    """Ground of train, val and test over the imagery; the rest is gap or has no label."""
    rows, columns = view.shape
    width = 8.6 if columns >= rows else 6.0
    figure = new_figure(width, width * rows / columns + 1.1)
    axes = new_axes(figure, 1, 1)[0][0]
    _show(axes, _faded(imagery(view)))
    tiles = dataset.tiles[dataset.tiles["scene"] == view.scene.name]
    side = dataset.info.tile_size / view.step
    handles: list[Artist] = []
    for split in SPLITS:
        part = tiles[tiles["split"] == split]
        covered = split_ground(view, dataset, split=split)
        for row, column in zip(part["row"] / view.step, part["column"] / view.step, strict=True):
            axes.add_patch(
                Rectangle((column - 0.5, row - 0.5), side, side, fill=False, ec=SPLIT_COLOURS[split], lw=0.35)
            )
        overlay = np.zeros((rows, columns, 4), dtype=np.float32)
        overlay[covered] = (*to_rgb(SPLIT_COLOURS[split]), 0.32)
        axes.imshow(overlay)
        axes.contour(covered, levels=[0.5], colors=[SPLIT_COLOURS[split]], linewidths=1.6)
        blocks = part["block"].nunique()
        label = f"{split}: {len(part)} chips in {blocks} block{'s' * (blocks != 1)}"
        handles.append(Patch(fc=(*to_rgb(SPLIT_COLOURS[split]), 0.32), ec=SPLIT_COLOURS[split], label=label))
    handles.append(Line2D([], [], color=GREY, lw=0, marker="s", mfc="#C9C9C9", label="gap: never used"))
    _scale_bar(axes, view)
    _north_arrow(axes)
    axes.set_title(f"Splits of {view.scene.name}")
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=8, frameon=False)
    return figure


def imagery(view: View) -> Picture:
    """True colour if the scene has it, stretched from the 2nd to the 98th percentile; white without observation."""
    wanted = ["B04", "B03", "B02"] if {"B04", "B03", "B02"} <= set(view.scene.bands) else [view.scene.bands[0]] * 3
    with rasterio.open(view.scene.path) as source:
        bands = band_indices(wanted, view.scene.bands, where=str(view.scene.path))
        pixels = np.stack([view.read(source, index + 1) for index in bands], axis=-1).astype(np.float32)
    known = (pixels != NODATA).all(axis=-1)
    if not known.any():
        return np.ones_like(pixels)
    low, high = np.percentile(pixels[known], (2, 98), axis=0)
    picture: Picture = np.clip((pixels - low) / np.maximum(high - low, 1), 0, 1).astype(np.float32) ** np.float32(0.85)
    picture[~known] = 1
    return picture


def _faded(picture: Picture) -> Picture:
    """The imagery in light grey, as a background for colours."""
    grey = picture @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return np.repeat((0.55 + 0.45 * grey)[..., None], 3, axis=-1)


def _paint(base: Picture, colours: dict[str, npt.NDArray[np.bool_]], *, unknown: npt.NDArray[np.bool_]) -> Picture:
    """The base with areas in flat colours, and white with stripes where unknown."""
    painted = base.copy()
    for colour, where in colours.items():
        painted[where] = to_rgb(colour)
    painted[unknown] = 1
    painted[unknown & stripes(unknown.shape)] = to_rgb(STRIPE)
    return painted


def stripes(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """(rows, columns) true on diagonal stripes, about 60 along the longer side."""
    down, right = np.indices(shape)
    period = max(max(shape) // 60, 4)
    striped: npt.NDArray[np.bool_] = (down + right) % period < max(period // 4, 1)
    return striped


def mapped_class(view: View, prediction: Prediction) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """True where the class is mapped at the prediction's threshold, and true where there is a prediction."""
    scores = _on_view(view, prediction.product.probability)
    known = scores != PROBABILITY_NODATA
    return known & (scores >= threshold_level(prediction.threshold)), known


def _on_view(view: View, path: Path) -> Scores:
    """The drawn pixels of a product's raster."""
    with rasterio.open(path) as source:
        affine, crs = view.scene.geobox.affine, str(view.scene.geobox.crs)
        row, column = offset(source, affine, crs, where=str(view.scene.path))
        window = Window(view.window.col_off + column, view.window.row_off + row, view.window.width, view.window.height)
        return View(view.scene, window).read(source).astype(np.uint8)


def _show(axes: Axes, layer: Picture) -> None:
    axes.imshow(layer)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_linewidth(0.5)
        spine.set_color(GREY)


def scale_length(view: View) -> tuple[float, str]:
    """Metres and label of a scale bar: 1, 2 or 5 times a power of ten, at most a quarter of the width."""
    target = view.shape[1] * view.metres / 4
    power = 10 ** np.floor(np.log10(target))
    length = float(next(step * power for step in (5, 2, 1) if step * power <= target))
    return length, f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"


def _scale_bar(axes: Axes, view: View) -> None:
    rows, columns = view.shape
    length, label = scale_length(view)
    bar = AnchoredSizeBar(
        axes.transData, length / view.metres, label, "lower left", size_vertical=max(rows, columns) * 0.006, pad=0.4,
        borderpad=0.5, sep=3, fontproperties=FontProperties(size=7.5),
    )  # fmt: skip
    bar.patch.set(alpha=0.85, linewidth=0)
    axes.add_artist(bar)


def _north_arrow(axes: Axes) -> None:
    axes.annotate(
        "N", xy=(1, 1), xytext=(-11, -26), xycoords="axes fraction", textcoords="offset points", ha="center",
        va="center", fontsize=8, fontweight="bold", bbox={"boxstyle": "circle,pad=0.2", "fc": "white", "ec": "none"},
    )  # fmt: skip
    axes.annotate(
        "", xy=(-11, -4), xytext=(-11, -19), xycoords=OffsetFrom(axes, (1, 1)), textcoords=OffsetFrom(axes, (1, 1)),
        arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1.2, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip
