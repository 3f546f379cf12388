"""Subsets of the chips for a training: folds over blocks, and label fractions.

They follow from tiles.parquet and a seed. No files are written: all folds and fractions read the same chips. The test
split never changes.
"""

from collections.abc import Sequence

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from terraseg.contracts.dataset import ChipDataset, Split
from terraseg.contracts.separation import closer_than
from terraseg.errors import ConfigError, SplitError

_STRATA = 10
"""Groups of similar class fraction; a label fraction takes the same share of each."""


def chosen_chips(
    dataset: ChipDataset, split: Split, *, fold: int | None, fraction: float, seed: int
) -> gpd.GeoDataFrame:
    """Rows of tiles.parquet that a training reads as ``split``. Their own column ``split`` names their folder.

    Args:
        fold: fold of the cross-validation that the dataset was prepared for; None: the splits as they are.
        fraction: share of the train area, greater than 0 and at most 1.
        seed: for the fraction.

    Raises:
        ConfigError: an invalid fraction, or a fold that the dataset was not prepared for.
        SplitError: train or val of the fold has no pixel of the class or of the background.
    """
    info, rows = dataset.info, dataset.split(split)
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction {fraction:g}", expected="a share of train, greater than 0 and at most 1")
    if fold is not None and split != "test":
        rule, folds = info.split_rule, info.split_rule.get("folds") or 0
        if fold not in range(folds):
            raise ConfigError(
                f"fold {fold}, but the dataset has {folds or 'no'} folds",
                expected=f"0 to {folds - 1}" if folds else "a dataset prepared with split.folds",
                fix="correct the fold, or set prepare.split.folds and run the preparation again",
            )
        parts = fold_chips(
            dataset.tiles, fold=fold, folds=folds, seed=rule["seed"], gap_m=rule["gap_m"], gsd=info.gsd, zones=info.crs
        )
        rows = parts[0 if split == "train" else 1]
    if split != "train":
        return rows
    return label_fraction(rows, fraction=fraction, seed=seed, tile_size=info.tile_size, gsd=info.gsd)


def fold_chips(
    tiles: gpd.GeoDataFrame, *, fold: int, folds: int, seed: int, gap_m: float, gsd: float, zones: Sequence[str] = ()
) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Train and val chips of one fold of a cross-validation over the blocks of train and val.

    Blocks go to folds at random, stratified by the density of the class. Blocks of several dates that show the same
    ground stay together. Val is fold number ``fold``, without chips that overlap other chips. Train is the rest,
    without chips within the gap of val: as in the preparation, train loses the ground of the gap.

    Args:
        tiles: tiles.parquet, in a metric CRS.
        fold: from 0 to ``folds`` - 1.
        gap_m: least distance between train and val, in metres.
        gsd: pixel size in metres.
        zones: CRSs of the images; the gap is measured in them, see `separation`.

    Returns:
        train, val: sorted as ``tiles``.

    Raises:
        SplitError: fewer blocks than folds, or no pixel of the class or of the background in train or val.
    """
    learned = tiles[tiles["split"] != "test"]
    number = _fold_of_chips(learned, folds=folds, seed=seed, gsd=gsd)
    val = _without_repetition(learned[number == fold])
    rest = learned[number != fold]
    train = rest[~closer_than(rest.geometry, val.geometry, gap_m=gap_m, zones=zones)]
    for name, part in (("train", train), ("val", val)):
        held = (part["class_fraction"] > 0).any() and (part["class_fraction"] < 1).any()
        if not held:
            raise SplitError(
                f"{name} of fold {fold} has {len(part)} chips without a pixel of the class, or without background",
                expected="class and background in each fold",
                fix="choose fewer folds, another split seed, smaller blocks (block_chips) or a larger area",
            )
    return train.reset_index(drop=True), val.reset_index(drop=True)


def label_fraction(
    train: gpd.GeoDataFrame, *, fraction: float, seed: int, tile_size: int, gsd: float
) -> gpd.GeoDataFrame:
    """Choose train chips that cover a share of the train area, stratified by class fraction.

    Chips are taken in an order that depends only on the seed, with each stratum spread evenly over it, until they cover
    the share of the area, but at least one. So a smaller fraction is part of a larger one. Chips that lie completely in
    the area covered are taken too, so overlapping chips add no more labels than requested. Several dates show the same
    ground: it counts once, and all its dates are taken.

    Args:
        train: rows of tiles.parquet.
        fraction: share of the area, greater than 0 and at most 1.
        tile_size: side of a chip, in pixels.
        gsd: pixel size in metres.

    Returns:
        The chosen rows, in the order of ``train``.
    """
    if fraction == 1:
        return train
    order = _stratified_order(train["class_fraction"].to_numpy(), seed=seed)
    unit, corner = ground_units(train, gsd=gsd), ground_pixels(train, gsd=gsd)
    ground: dict[int, npt.NDArray[np.bool_]] = {}
    first: dict[int, npt.NDArray[np.intp]] = {}
    for number in range(int(unit.max()) + 1):
        own = corner[unit == number]
        first[number] = own.min(axis=0)
        ground[number] = np.zeros(np.ptp(own, axis=0) + tile_size, dtype=bool)
    windows = []
    for number, place in zip(unit.tolist(), corner, strict=True):
        row, column = place - first[number]
        windows.append(ground[number][row : row + tile_size, column : column + tile_size])
        windows[-1][...] = True
    wanted = fraction * sum(int(shown.sum()) for shown in ground.values())
    for shown in ground.values():
        shown[...] = False
    reached = 0
    for chip in order:
        if reached >= wanted:
            break
        reached += tile_size**2 - int(windows[chip].sum())
        windows[chip][...] = True
    return train[[bool(window.all()) for window in windows]].reset_index(drop=True)


def ground_units(chips: gpd.GeoDataFrame, *, gsd: float) -> npt.NDArray[np.intp]:
    """(chips,) number of the ground of each chip: its block together with the blocks that overlap it.

    Blocks of several dates, or of overlapping scenes, are the same ground. A block without coordinates is its own.
    """
    names, block = np.unique(chips["block"].to_numpy(dtype=str), return_inverse=True)
    shapes = chips.geometry.to_numpy()
    first, second = shapely.STRtree(shapes).query(shapely.buffer(shapes, -gsd / 2), predicate="intersects")
    links = coo_array((np.ones(len(first), dtype=bool), (block[first], block[second])), shape=(len(names), len(names)))
    _, unit = connected_components(links, directed=False)
    return np.asarray(unit[block], dtype=np.intp)


def ground_pixels(chips: gpd.GeoDataFrame, *, gsd: float) -> npt.NDArray[np.intp]:
    """(chips, 2) row and column of each chip's upper left corner on one grid of ground, the same for all scenes.

    Chips without coordinates keep their place in their image.
    """
    left, _, _, top = shapely.bounds(chips.geometry.to_numpy()).T
    placed = np.isfinite(left)
    corner = chips[["row", "column"]].to_numpy(dtype=np.intp, copy=True)
    if placed.any():
        offset = np.stack([np.nanmax(top) - top, left - np.nanmin(left)], axis=1) / gsd
        corner[placed] = np.rint(offset[placed]).astype(np.intp)
    return np.asarray(corner)


def _fold_of_chips(chips: gpd.GeoDataFrame, *, folds: int, seed: int, gsd: float) -> npt.NDArray[np.intp]:
    """(chips,) fold of each chip. Blocks are grouped by density; each group gives one block to each fold."""
    unit = ground_units(chips, gsd=gsd)
    count = int(unit.max()) + 1
    if count < folds:
        raise SplitError(
            f"{count} blocks of train and val are too few for {folds} folds",
            expected="at least one block per fold",
            fix="choose fewer folds, or smaller blocks (block_chips)",
        )
    weights = chips["valid_fraction"].to_numpy()
    covered = np.bincount(unit, weights=weights * chips["class_fraction"].to_numpy(), minlength=count)
    density = covered / np.bincount(unit, weights=weights, minlength=count)
    random = np.random.default_rng(seed)
    order = np.argsort(-density, kind="stable")
    fold = np.empty(count, dtype=np.intp)
    for start in range(0, count, folds):
        group = order[start : start + folds]
        fold[group] = random.permutation(folds)[: len(group)]
    return np.asarray(fold[unit])


def _without_repetition(chips: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Drop chips that overlap an earlier chip of their block, so that no ground counts twice in val."""
    size = np.ptp(shapely.bounds(chips.geometry.to_numpy())[:, [0, 2]], axis=1)
    shapes = shapely.buffer(chips.geometry.to_numpy(), -size * 1e-3)
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    block = chips["block"].to_numpy()
    same = (block[first] == block[second]) & (second < first)
    dropped = np.zeros(len(chips), dtype=bool)
    for chip, earlier in sorted(zip(first[same].tolist(), second[same].tolist(), strict=True)):
        dropped[chip] |= not dropped[earlier]
    return chips[~dropped]


def _stratified_order(values: npt.NDArray[np.float64], *, seed: int) -> npt.NDArray[np.intp]:
    """An order of positions in which every prefix holds each stratum's share, to within about one."""
    random = np.random.default_rng(seed)
    turn = np.empty(len(values))
    for stratum in np.array_split(np.argsort(values, kind="stable"), min(_STRATA, len(values))):
        turn[stratum] = (random.permutation(len(stratum)) + random.random()) / len(stratum)
    return np.argsort(turn, kind="stable")
