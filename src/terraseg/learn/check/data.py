"""The data part of the check, without torch: is the dataset consistent, and does it fit the config?

Each function answers one question and returns its findings. Only `check_sample` reads chips, and only a few: a training
starts by packing, which reads and verifies all of them.
"""

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import shapely

from terraseg.contracts.dataset import IGNORE, SPLITS, ChipDataset, Split, open_dataset, pairs_on_disk
from terraseg.contracts.imagery.values import check_levels
from terraseg.contracts.separation import in_metres, separation
from terraseg.contracts.subsets import chosen_chips
from terraseg.core.bands import UNIT, band, band_indices
from terraseg.learn.check.finding import Finding, attempt, error, warning
from terraseg.learn.chips.pack import read_chip
from terraseg.learn.chips.standardise import DATASET, standard_of
from terraseg.learn.models.specs import SPECS, BackboneSpec
from terraseg.learn.models.wheels import WHEELS

_DATA, _MODEL = "data.init_args", "model.init_args"
_PREPARE = "run the preparation again"
_SAMPLE = 4
"""Chips of each split that are read."""

_RARE = 0.001
"""A class with a smaller share of the labelled pixels is reported as rare."""

_JULY = (7,)
"""Default month of the backbones that take one."""

_NOT_OBSERVED = {"int16": (-32768, -9999, 32767), "uint16": (65535,)}
"""Values of each type that no ground has, but that mean nodata in many files."""

_OFFSET = 1000
"""If all ground is brighter than this many DN, the offset of processing baseline 04.00 was probably not removed."""


def check_data(config: Mapping[str, Any]) -> tuple[ChipDataset | None, int | None, list[Finding]]:
    """All of the data part.

    Args:
        config: an experiment's YAML, parsed.

    Returns:
        The dataset and its number of train chips, each None if unknown; and all findings.
    """
    data, model = _arguments(config, "data"), _arguments(config, "model")
    if not isinstance(data.get("root"), str):
        return None, None, [error(f"{_DATA}.root", "missing", expected="the folder of a dataset")]
    dataset, findings = attempt(f"{_DATA}.root", lambda: open_dataset(data["root"]))
    if dataset is None:
        return None, None, findings
    whole: list[Finding] = []
    for split in SPLITS:
        _, faults = attempt(f"{_DATA}.root", partial(pairs_on_disk, dataset, [split]))
        whole += faults
    findings += whole
    findings += check_statistics(dataset) + check_labels(dataset) + check_splits(dataset)
    faults = check_bands(dataset, data.get("bands"))
    if not faults and (statistics := data.get("statistics", DATASET)) != DATASET:
        bands = [band(str(name)).name for name in data.get("bands") or dataset.info.bands]
        faults = attempt(f"{_DATA}.statistics", partial(standard_of, dataset, bands, statistics=statistics))[1]
    findings += faults
    subset = "fraction" if data.get("fold") is None else "fold"
    chips, faults = attempt(f"{_DATA}.{subset}", partial(train_chips, dataset, data))
    findings += faults
    if chips is not None:
        findings += check_batches(chips, data.get("batch_size", 8), class_share=data.get("class_share"))
    findings += check_dropped_dates(dataset, data.get("drop_dates", 0))
    findings += check_classes(
        dataset,
        num_classes=(model.get("model_args") or {}).get("num_classes"),
        class_weights=model.get("class_weights"),
    )
    findings += check_pretraining(dataset, model)
    findings += [] if whole else check_sample(dataset)
    return dataset, None if chips is None else len(chips), findings


def check_held(dataset: ChipDataset) -> list[Finding]:
    """The checks that packing does not make: statistics, labels and splits."""
    return check_statistics(dataset) + check_labels(dataset) + check_splits(dataset)


def check_statistics(dataset: ChipDataset) -> list[Finding]:
    """Each band has valid statistics, in the unit that the dataset declares."""
    where, info = f"{_DATA}.root", dataset.info
    stats, findings = attempt(where, lambda: dataset.stats)
    if info.unit != UNIT:
        findings.append(error(where, f"the chips have unit {info.unit}", expected=UNIT, fix=_PREPARE))
    if stats is None:
        return findings
    if set(stats.bands) != set(info.bands):
        found = f"stats.json has {len(stats.bands)} bands ({', '.join(stats.bands)})"
        findings.append(
            error(where, found, expected=f"one each of {len(info.bands)}: {', '.join(info.bands)}", fix=_PREPARE)
        )
    for name, held in stats.bands.items():
        levels = list(held.percentiles.values())
        if not all(map(math.isfinite, (held.mean, held.std, *levels))):
            findings.append(error(where, f"{name}: its statistics are not finite", fix=_PREPARE))
        elif held.std <= 0:
            findings.append(error(where, f"{name} is constant over train", fix=f"remove it from {_DATA}.bands"))
        elif abs(held.mean) < 2 and held.std < 2:
            found = f"{name}: mean {held.mean:.3g}, std {held.std:.3g}"
            findings.append(
                error(where, found, expected="DN of 1e-4 reflectance", fix="convert reflectance from 0-1 to DN")
            )
        elif levels and (min(levels) <= max(_NOT_OBSERVED["int16"][:2]) or max(levels) in (32767, 65535)):
            findings.append(
                error(
                    where,
                    f"{name}: values from {min(levels):.0f} to {max(levels):.0f} DN",
                    expected="0 to 10000",
                    fix="declare the value without an observation as nodata, such as --nodata=-9999, and " + _PREPARE,
                )
            )
        elif not -1000 < held.mean < 20_000 or (levels and not min(levels) <= held.mean <= max(levels)):
            findings.append(
                warning(where, f"{name}: mean {held.mean:.0f} DN", expected="0 to 10000", fix="check its values")
            )
    if info.unit == UNIT:
        findings += attempt(where, lambda: check_levels(dataset.root, stats))[1]
    darkest = [min(held.percentiles.values()) for held in stats.bands.values() if held.percentiles]
    if info.unit == UNIT and darkest and min(darkest) >= _OFFSET:
        findings.append(
            warning(
                where,
                f"no band has ground darker than {min(darkest):.0f} DN",
                expected=f"some below {_OFFSET}",
                fix="check whether the offset of baseline 04.00 (-1000) was applied",
            )
        )
    return findings


def check_labels(dataset: ChipDataset) -> list[Finding]:
    """Class ids are as declared, train holds each of them, and each split holds the class."""
    where, info = f"{_DATA}.root", dataset.info
    stats, _ = attempt(where, lambda: dataset.stats)  # check_statistics reports it
    findings = []
    if sorted(info.classes) != list(range(len(info.classes))) or len(info.classes) < 2:
        findings.append(error(where, f"class ids {sorted(info.classes)}", expected="0, 1, ...", fix=_PREPARE))
    counts = stats.class_pixels if stats else {}
    if unknown := sorted(set(counts) - set(info.classes)):
        findings.append(error(where, f"label ids {unknown}", expected=f"{sorted(info.classes)}", fix=_PREPARE))
    total = sum(counts.values())
    for key, name in info.classes.items():
        if stats and not counts.get(key):
            found, fix = f"train has no pixel of {key} {name}", "prepare more ground, or drop it"
            # Of many classes a rare one may be missing on a small area; without one of two there is nothing to learn.
            several = len(info.classes) > 2 and sum(map(bool, counts.values())) > 1
            findings.append(warning(where, found, fix=fix) if several else error(where, found, fix=fix))
        elif stats and counts[key] / total < _RARE:
            findings.append(
                warning(
                    where,
                    f"{counts[key] / total:.3%} of train is {key} {name}",
                    expected="more than a few pixels per batch",
                    fix=f"set {_DATA}.class_share",
                )
            )
    for split in SPLITS:
        chips = dataset.split(split)
        if chips.empty:
            findings.append(error(where, f"no chip in {split}", expected="some in each split", fix=_PREPARE))
        elif not chips["class_fraction"].gt(0).any():
            findings.append(error(where, f"no pixel of a class in {split}", expected="some", fix=_PREPARE))
    return findings


def check_splits(dataset: ChipDataset) -> list[Finding]:
    """No two splits share ground, a block or a tile id, and they keep the promised gap; measured on the chips."""
    where, tiles = f"{_DATA}.root", dataset.tiles
    findings = []
    if foreign := sorted(set(tiles["split"]) - set(SPLITS)):
        findings.append(error(where, f"splits {foreign}", expected=", ".join(SPLITS), fix=_PREPARE))
    if len(twice := tiles.loc[tiles["tile"].duplicated(), "tile"]):
        findings.append(error(where, f"{len(twice)} duplicate tiles, such as {twice.iloc[0]}", fix=_PREPARE))
    of_block = tiles.groupby("block")["split"].nunique()
    if len(shared := of_block.index[of_block > 1]):
        findings.append(error(where, f"{len(shared)} blocks in two splits, such as {shared[0]}", fix=_PREPARE))
    audit, faults = attempt(where, lambda: dataset.audit)
    findings += faults
    shapes = tiles.geometry.to_numpy()
    if shapely.is_missing(shapes).any() or shapely.is_empty(shapes).any():
        found = "chips without coordinates: the splits may share ground"
        return [*findings, warning(where, found, expected="georeferenced chips", fix="mention it next to each score")]
    promised = float((audit or {}).get("gap_m", 0))
    for first, second in combinations(SPLITS, 2):
        mine, theirs = (tiles.geometry[tiles["split"] == split] for split in (first, second))
        measured = separation(mine, theirs, zones=dataset.info.crs)
        if measured.shared_m2 > 0:
            found = f"{first} and {second} share {measured.shared_m2:.0f} m² of ground"
            findings.append(error(where, found, expected="none", fix=_PREPARE))
        elif not measured.holds(promised):
            found = f"{first} and {second} are {in_metres(measured.least_m)} m apart"
            findings.append(error(where, found, expected=f"{in_metres(promised)} m, as audit.json says", fix=_PREPARE))
    return findings


def check_bands(dataset: ChipDataset, bands: Sequence[str] | None) -> list[Finding]:
    """The dataset has the config's bands, and each is listed once."""
    if bands is None:
        return []
    where = f"{_DATA}.bands"
    names, findings = attempt(where, lambda: [band(str(name)).name for name in bands])
    if names is None:
        return findings
    if len(set(names)) < len(names):
        return [error(where, f"{', '.join(names)}", expected="each band once")]
    return attempt(where, lambda: band_indices(names, dataset.info.bands, where=str(dataset.root)))[1]


def train_chips(dataset: ChipDataset, data: Mapping[str, Any]) -> gpd.GeoDataFrame:
    """The train chips, by fold and fraction of ``data.init_args``.

    Raises:
        ConfigError, SplitError: see `chosen_chips`.
    """
    fold, fraction, seed = data.get("fold"), data.get("fraction", 1.0), data.get("seed", 0)
    return chosen_chips(dataset, "train", fold=fold, fraction=fraction, seed=seed)


def check_batches(chips: gpd.GeoDataFrame, batch_size: int, *, class_share: float | None) -> list[Finding]:
    """There is at least one full batch per epoch: incomplete ones are dropped, so fewer chips would mean no step."""
    findings = []
    if not isinstance(batch_size, int) or batch_size < 1:
        return [error(f"{_DATA}.batch_size", f"{batch_size}", expected="a whole number, 1 or more")]
    if batch_size > len(chips):
        findings.append(
            error(
                f"{_DATA}.batch_size",
                f"{batch_size} is more than the {len(chips)} train chips, so there would be no step",
                expected=f"at most {len(chips)}",
                fix="choose a smaller batch_size, or prepare more chips (train_stride, tile_size)",
            )
        )
    if class_share is not None:
        with_class = int(chips["class_fraction"].gt(0).sum())
        if not 0 < class_share < 1:
            findings.append(error(f"{_DATA}.class_share", f"{class_share}", expected="between 0 and 1"))
        elif with_class in (0, len(chips)):
            found = f"{with_class} of {len(chips)} train chips hold the class"
            findings.append(
                warning(f"{_DATA}.class_share", found, expected="some with it and some without", fix="remove it")
            )
    return findings


def check_dropped_dates(dataset: ChipDataset, share: object) -> list[Finding]:
    """Dates are dropped only where there are several."""
    where = f"{_DATA}.drop_dates"
    if not isinstance(share, int | float) or not 0 <= share < 1:
        return [error(where, f"{share}", expected="0 to less than 1")]
    if share and dataset.info.frames == 1:
        return [
            error(where, f"{share:g}, but the dataset has one date of each place", expected="several", fix="remove it")
        ]
    return []


def check_classes(
    dataset: ChipDataset,
    *,
    num_classes: int | None,
    class_weights: Sequence[float] | str | None,
) -> list[Finding]:
    """The model has one output per class of the dataset."""
    classes = dataset.info.classes
    named, findings = ", ".join(classes.values()), []
    if num_classes != len(classes):
        findings.append(
            error(f"{_MODEL}.model_args.num_classes", f"{num_classes}", expected=f"{len(classes)} ({named})")
        )
    if class_weights is not None and not isinstance(class_weights, str) and len(class_weights) != len(classes):
        findings.append(
            error(f"{_MODEL}.class_weights", f"{len(class_weights)} factors", expected=f"{len(classes)} ({named})")
        )
    return findings


def check_pretraining(dataset: ChipDataset, model: Mapping[str, Any]) -> list[Finding]:
    """Level and months of the dataset are those that the backbone was pretrained on and gets.

    Args:
        dataset: the dataset.
        model: ``model.init_args``.
    """
    arguments, findings = model.get("model_args") or {}, []
    spec = SPECS.get(str(arguments.get("backbone")))
    if spec is None:
        return []
    wheel = WHEELS.get(str(model.get("weights")))
    level, levels = dataset.info.processing.level, wheel.levels if wheel else _levels(spec, arguments)
    if level and levels and level not in levels and model.get("weights") != "random":
        findings.append(
            warning(
                f"{_MODEL}.model_args.backbone",
                f"{(wheel or spec).name} was pretrained on {' and '.join(levels)}, the dataset is {level}",
                expected="one level",
                fix=f"prepare scenes of level {' or '.join(levels)}, or mention it next to each score",
            )
        )
    declared = arguments.get("backbone_months", _JULY)
    if spec.months and isinstance(declared, Sequence):
        for frame, (month, real) in enumerate(zip(declared, _months(dataset), strict=False), start=1):
            if real and month not in real:
                found = f"date {frame} is declared as month {month}, the scenes are of month {_listed(real)}"
                fix = f"write {sorted(real)[0]}; the model gets this month in every map too"
                findings.append(warning(f"{_MODEL}.model_args.backbone_months", found, fix=fix))
    return findings


def _levels(spec: BackboneSpec, arguments: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Levels of the pretraining; of several only that of the chosen modality, such as S2L2A."""
    chosen = tuple(str(name).removeprefix("S2") for name in arguments.get("backbone_modalities") or ())
    return tuple(level for level in spec.levels or () if not chosen or level in chosen) or spec.levels


def _months(dataset: ChipDataset) -> list[set[int]]:
    """The calendar months of the scenes of each date; empty if unknown."""
    info = dataset.info
    if info.frames > 1:
        days = zip(*info.frame_dates.values(), strict=True)
        return [{dt.date.fromisoformat(day).month for day in each} for each in days]
    scenes = info.provenance.get("scenes")
    return [{month for each in scenes.values() for month in _months_of(each)} if isinstance(scenes, dict) else set()]


def _months_of(properties: Mapping[str, Any]) -> set[int]:
    """The months of a scene's item; of a composite all from its first day to its last."""
    times = [properties.get(key) for key in ("start_datetime", "datetime", "end_datetime")]
    days = [dt.datetime.fromisoformat(str(time)) for time in times if time]
    if not days:
        return set()
    first, last = days[0], days[-1]
    months = 12 * (last.year - first.year) + last.month - first.month
    return {(first.month - 1 + k) % 12 + 1 for k in range(months + 1)}


def _listed(months: set[int]) -> str:
    return ", ".join(map(str, sorted(months)))


def check_sample(dataset: ChipDataset) -> list[Finding]:
    """A few chips of each split are unchanged since the preparation, and their files agree with the dataset."""
    findings = []
    for split in SPLITS:
        rows = dataset.split(split)
        for position in np.unique(np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(int)):
            tile, checksum = rows["tile"][position], int(rows["checksum"][position])
            read = partial(read_chip, dataset, split, tile, checksum=checksum)
            chip, faults = attempt(f"{_DATA}.root", read)
            findings += faults or _check_headers(dataset, split, tile, place=rows["scene"][position])
            if chip is not None:
                findings += _check_values(chip[0], f"chip {tile} of {split}")
    return findings


def _check_values(image: npt.NDArray[Any], where: str) -> list[Finding]:
    held = [value for value in _NOT_OBSERVED.get(str(image.dtype), ()) if (image == value).any()]
    return [
        error(
            f"{_DATA}.root",
            f"{where} has the value {value}, which no ground has",
            expected="DN of 1e-4 reflectance",
            fix=f"declare it as nodata, such as --nodata={value}, and {_PREPARE}",
        )
        for value in held
    ]


def _check_headers(dataset: ChipDataset, split: Split, tile: str, *, place: str) -> list[Finding]:
    info, findings = dataset.info, []
    layers = info.layers(place)
    with rasterio.open(dataset.image(split, tile)) as image, rasterio.open(dataset.mask(split, tile)) as mask:
        headers = {
            "CRS": (str(image.crs or "none"), " or ".join(info.crs) or "none"),
            "unit": (image.tags().get("UNIT", info.unit), info.unit),
            "bands": (
                ", ".join(name or own for name, own in zip(image.descriptions, layers, strict=True)),
                ", ".join(layers),
            ),
            "nodata": (f"{image.nodata or 0:g}", f"{info.nodata:g}"),
            "nodata of the mask": (f"{IGNORE if mask.nodata is None else mask.nodata:g}", str(IGNORE)),
        }
    for what, (found, expected) in headers.items():
        if found != expected and not (what == "CRS" and found in info.crs):
            findings.append(
                error(f"{_DATA}.root", f"chip {tile} of {split}: {what} {found}", expected=expected, fix=_PREPARE)
            )
    return findings


def _arguments(config: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """``init_args`` of a section; empty if there are none."""
    arguments: Mapping[str, Any] = (config.get(section) or {}).get("init_args") or {}
    return arguments
