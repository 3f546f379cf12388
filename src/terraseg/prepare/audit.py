"""Audit of the splits, measured on the chips as they are written, not on the plan."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import geopandas as gpd

from terraseg.contracts.dataset import SPLITS
from terraseg.contracts.separation import in_metres, separation
from terraseg.contracts.subsets import fold_chips
from terraseg.errors import SplitError


def audit_splits(
    tiles: gpd.GeoDataFrame,
    *,
    pixels: Mapping[str, Mapping[str, int]],
    ground: int,
    gap_m: float,
    gsd: float,
    zones: Sequence[str] = (),
    several_classes: bool = False,
) -> dict[str, Any]:
    """Measure distances and overlap between the splits, and the content of each split.

    Args:
        tiles: tiles.parquet in a metric CRS.
        pixels: for each split the number of ``chips``, and of pixels of the ``class``, ``background`` and ``ignored``;
            each pixel counts once.
        ground: pixels that were dealt to the splits.
        gap_m: least distance required between splits, in metres.
        gsd: pixel size in metres.
        zones: CRSs of the images; distances are measured in them, see `separation`.
        several_classes: whether there are more than two classes: then none of them must be in each split.

    Returns:
        The content of audit.json.

    Raises:
        SplitError: splits share pixels or are closer than the gap, or a split has no pixel of the class or of the
            background.
    """
    shapes = {split: tiles.geometry[tiles["split"] == split] for split in SPLITS}
    splits = audit_contents(tiles, pixels, several_classes=several_classes)
    between: dict[str, dict[str, float]] = {}
    for first, second in combinations(SPLITS, 2):
        measured = separation(shapes[first], shapes[second], zones=zones)
        pixels_shared = math.ceil(round(measured.shared_m2 / gsd**2, 3))
        between[f"{first}-{second}"] = {"least_distance_m": measured.least_m, "shared_pixels": pixels_shared}
        if not measured.holds(gap_m):
            raise SplitError(
                f"the splits {first}-{second} are {in_metres(measured.least_m)} m apart and share "
                f"{pixels_shared} pixels",
                expected=f"a gap of {in_metres(gap_m)} m and no shared pixel",
                fix="mosaic scenes that overlap or touch into one scene before the preparation",
            )
    used = sum(sum(pixels[split][kind] for kind in ("class", "background", "ignored")) for split in SPLITS)
    return {
        "gap_m": gap_m,
        "between": between,
        "splits": splits,
        "ground_in_gaps_share": 1 - used / ground,
    }


def audit_contents(
    tiles: gpd.GeoDataFrame, pixels: Mapping[str, Mapping[str, int]], *, several_classes: bool = False
) -> dict[str, dict[str, float]]:
    """Content of each split: pixels by kind, shares, blocks.

    Args:
        tiles: see `audit_splits`.
        pixels: see `audit_splits`.
        several_classes: see `audit_splits`.

    Raises:
        SplitError: a split has no pixel of the class or of the background.
    """
    for split in SPLITS:
        counts = pixels[split]
        labelled = counts["class"] + counts["background"]
        _check_content(split, {**counts, "class": labelled, "background": labelled} if several_classes else counts)
    return {
        split: {
            **counts,
            "class_share": counts["class"] / (counts["class"] + counts["background"]),
            "ignored_share": counts["ignored"] / max(1, sum(counts[k] for k in ("class", "background", "ignored"))),
            "blocks": int(tiles.loc[tiles["split"] == split, "block"].nunique()),
        }
        for split, counts in pixels.items()
    }


def audit_folds(
    tiles: gpd.GeoDataFrame, *, folds: int, seed: int, gap_m: float, gsd: float, zones: Sequence[str] = ()
) -> list[dict[str, float]]:
    """Measure each fold of the cross-validation, with the chips that a training reads.

    Args:
        tiles: tiles.parquet in a metric CRS.
        folds: number of folds.
        seed: for the folds.
        gap_m: least distance in metres between train and val of a fold, and from both to test.
        gsd: pixel size in metres.
        zones: CRSs of the images; distances are measured in them, see `separation`.

    Returns:
        For each fold: number of chips in train, in val, and left out because of the gap; least distance in metres
        between train and val, and from both to test.

    Raises:
        SplitError: the gap is too small, there are fewer blocks than folds, or a fold lacks the class or background.
    """
    test = tiles.geometry[tiles["split"] == "test"]
    learned = int((tiles["split"] != "test").sum())
    measured = []
    for fold in range(folds):
        train, val = fold_chips(tiles, fold=fold, folds=folds, seed=seed, gap_m=gap_m, gsd=gsd, zones=zones)
        between = separation(train.geometry, val.geometry, zones=zones)
        to_test = [separation(part.geometry, test, zones=zones) for part in (train, val)]
        if not all(measure.holds(gap_m) for measure in (between, *to_test)):
            raise SplitError(
                f"fold {fold}: train and val are {in_metres(between.least_m)} m apart, and "
                f"{in_metres(min(measure.least_m for measure in to_test))} m from test",
                expected=f"a gap of {in_metres(gap_m)} m",
                fix="mosaic scenes that overlap or touch into one scene before the preparation",
            )
        measured.append(
            {
                "train_chips": len(train),
                "val_chips": len(val),
                "left_out_chips": learned - len(train) - len(val),
                "least_distance_m": between.least_m,
                "least_distance_to_test_m": min(measure.least_m for measure in to_test),
            }
        )
    return measured


def _check_content(split: str, counts: Mapping[str, int]) -> None:
    if counts["chips"] == 0:
        raise SplitError(
            f"the split {split} has no chips: its ground is narrower than a chip, or lies in the gaps of the others",
            expected="chips in each split",
            fix="use smaller chips (tile_size) or blocks (block_chips), a smaller gap, or more labelled ground",
        )
    for kind in ("class", "background"):
        if counts[kind] == 0:
            raise SplitError(
                f"the split {split} has {counts['chips']} chips without a pixel of {kind}",
                expected="class and background in each split",
                fix="use smaller chips (tile_size) or blocks (block_chips), more labelled ground, or, with the split "
                "kind blocks, another seed",
            )
