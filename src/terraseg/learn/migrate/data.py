"""The data section of an old config: the command that makes a dataset of its folders, and what loads that dataset."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from terraseg.core.bands import UNIT, band
from terraseg.errors import ConfigError
from terraseg.learn.check.config import CLASSES
from terraseg.learn.migrate.lines import Lines, short
from terraseg.learn.migrate.model import bands_of, names_of
from terraseg.learn.migrate.recognise import stock_class
from terraseg.learn.migrate.table import DATA, Rule

_DATA = "data.init_args"
_SPLITS = ("train", "val", "test")
_GENERIC = ("GenericNonGeoSegmentationDataModule", "GenericMultiModalDataModule")
_FLIPS = ("HorizontalFlip", "VerticalFlip", "Flip", "D4", "RandomRotate90", "Transpose", "SquareSymmetry")
_CROPS = ("RandomCrop", "CenterCrop", "CropNonEmptyMaskIfExists", "RandomSizedCrop")
_SIZES = ("img_size", "backbone_img_size", "backbone_pretrain_img_size")
_OTHER_FORMATS = (".npy", ".nc", ".h5", ".png", ".jpg", ".jpeg", ".zarr")
_NEEDLESS = ("ToTensorV2",)
_REFLECTANCE = 2
"""Means below this are of reflectance, those above of DN."""

_LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "Sen1Floods11NonGeoDataModule": {
        "data_root": "{root}/v1.1/data/flood_events/HandLabeled/S2Hand",
        "label_data_root": "{root}/v1.1/data/flood_events/HandLabeled/LabelHand",
        "img_grep": "*_S2Hand.tif",
        "label_grep": "*_LabelHand.tif",
        "constant_scale": 0.0001,
        "num_classes": 2,
        **{
            f"{split}_split": f"{{root}}/v1.1/splits/flood_handlabeled/flood_{name}_data.txt"
            for split, name in zip(_SPLITS, ("train", "valid", "test"), strict=True)
        },
        "dataset_bands": [
            "COASTAL_AEROSOL", "BLUE", "GREEN", "RED", "RED_EDGE_1", "RED_EDGE_2", "RED_EDGE_3", "NIR_BROAD",
            "NIR_NARROW", "WATER_VAPOR", "CIRRUS", "SWIR_1", "SWIR_2",
        ],
    },
}  # fmt: skip
"""Datamodules of one published dataset, as generic ones."""


@dataclass
class Import:
    """A call of ``terraseg data import``.

    Attributes:
        options: words of the command line by their option.
        notes: what to do before.
    """

    options: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def command(self) -> str:
        """The command line."""
        words = [word for option, values in self.options.items() for word in (option, *values)]
        return shlex.join(["terraseg", "data", "import", *words])


def generic(section: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a stock datamodule, as those of `GenericNonGeoSegmentationDataModule`.

    Raises:
        ConfigError: it reads no folders of images and masks of one date.
    """
    name = stock_class(section)
    given = {**(section.get("dict_kwargs") or {}), **(section.get("init_args") or {})}
    if layout := _LAYOUTS.get(str(name)):
        root = str(given.pop("data_root", "DATA"))
        filled = {key: value.format(root=root) if isinstance(value, str) else value for key, value in layout.items()}
        given = {**filled, **given}
    elif name not in _GENERIC:
        raise ConfigError(
            f"data is {name}, which reads a dataset in a form of its own",
            expected=" or ".join((*_GENERIC, *_LAYOUTS)),
            fix="write the dataset as GeoTIFFs of images and masks, bring them in with `terraseg data import`, and "
            f"name {_GENERIC[0]} with their folders",
        )
    modalities = given.get("modalities") or []
    if len(modalities) > 1:
        raise ConfigError(
            f"the data has the modalities {', '.join(map(str, modalities))}; terraseg reads Sentinel-2 alone",
            expected="one",
            fix="keep S2L2A alone in the modalities of model and data, and convert again",
        )
    single = {key: _only(value) for key, value in given.items()}
    if single.get("expand_temporal_dimension"):
        raise ConfigError(
            "expand_temporal_dimension: the images hold several dates of a place",
            expected="images of one date: `terraseg data import` reads no others",
            fix="write a scene for each date, make the dataset with `terraseg data preprocess` (prepare.frames) and "
            "start from configs/prithvi_multitemporal.yaml",
        )
    return single


def _only(value: Any) -> Any:  # noqa: ANN401
    """The value of the single modality, if it is given by modality."""
    return next(iter(value.values())) if isinstance(value, Mapping) and len(value) == 1 else value


def data_bands(given: Mapping[str, Any]) -> list[str] | None:
    """Names of the bands that the datamodule gives the model; None if it does not name them."""
    chosen = next((given[key] for key in ("output_bands", "bands", "filter_indices") if given.get(key)), None)
    every = names_of(given.get("dataset_bands"))
    if every and isinstance(chosen, list) and all(isinstance(index, int) for index in chosen):
        return [every[index] for index in chosen if index < len(every)]
    return names_of(chosen) or (None if chosen else every)


def data_section(
    section: Mapping[str, Any],
    given: Mapping[str, Any],
    model: Mapping[str, Any],
    bands: list[str],
    lines: Lines,
    *,
    root: str,
) -> tuple[dict[str, Any], Import]:
    """The section, and the command that makes its dataset.

    Args:
        section: the old one.
        given: see `generic`.
        model: ``model.init_args`` of the old config; it knows the classes and the value of unknown pixels.
        bands: of the model, in TerraTorch's names.
        lines: gets what changed.
        root: folder of the new dataset.
    """
    todo, crop = Import(), _transforms(given, lines)
    lines.add("data.class_path", section.get("class_path"), CLASSES["data"])
    _folders(given, todo)
    _suffixes(given, todo)
    if names := _file_bands(given, model):
        todo.options["--bands"] = [",".join(band(name).name for name in names)]
    else:
        todo.notes.append("if the files don't name their bands, do it with --bands, all of them in file order")
    if (unit := _unit(given)) is not None:
        todo.options["--unit"] = [unit]
    else:
        todo.notes.append(f"if the files have no tag UNIT, add --unit {UNIT} or --unit reflectance")
    _labels(given, model, todo)
    arguments = model.get("model_args") or {}
    sizes = [crop, given.get("img_size"), *(arguments.get(key) for key in _SIZES)]
    if (size := next((each for each in sizes if isinstance(each, int)), None)) is not None:
        todo.options["--tile-size"] = [str(size)]
    todo.options["--output"] = [root]
    made = {
        "root": root,
        "bands": [band(name).name for name in bands],
        "batch_size": given.get("batch_size", 8),
        "num_workers": given.get("num_workers", 0),
        "augment": any(name in _FLIPS for name, _ in _steps(given.get("train_transform"))),
    }
    for key, value in {**(section.get("init_args") or {}), **(section.get("dict_kwargs") or {})}.items():
        _tell(key, value, made, lines)
    return {"class_path": CLASSES["data"], "init_args": made}, todo


def _tell(key: str, value: object, made: Mapping[str, Any], lines: Lines) -> None:
    rule: Rule | None = DATA.get(key)
    if key in made and made[key] == value:
        return
    if rule is None or not rule.to:
        lines.leave_out(f"{_DATA}.{key}", value, rule)
    elif rule.to == "root":
        lines.add(f"{_DATA}.{key}", value, rule.note)
    else:
        lines.add(f"{_DATA}.{key}", value, f"{rule.to}: {short(made[rule.to])}")


def _folders(given: Mapping[str, Any], todo: Import) -> None:
    roots = [_path(given, split, "data_root") for split in _SPLITS]
    labels = [_path(given, split, "label_data_root") or root for split, root in zip(_SPLITS, roots, strict=True)]
    files = [given.get(f"{split}_split") for split in _SPLITS]
    places = list(zip(roots, labels, files, strict=True))
    if None in roots or len(set(places)) < len(_SPLITS):
        todo.notes.append(
            "the config has no test data of its own: put all images into one folder, to split them by location, or "
            "give ground that neither train nor val has"
        )
        todo.options["--images"], todo.options["--masks"] = [str(roots[0] or "IMAGES")], [str(labels[0] or "MASKS")]
        return
    if parents := _parents(roots, labels):
        todo.options["--images"], todo.options["--masks"] = [parents[0]], [parents[1]]
        return
    one = len(set(roots)) == len(set(labels)) == 1
    todo.options["--images"] = [str(root) for root in (roots[:1] if one else roots)]
    todo.options["--masks"] = [str(label) for label in (labels[:1] if one else labels)]
    if all(files) and one:
        todo.options["--split-files"] = [str(path) for path in files]
    elif any(files):
        todo.notes.append("--split-files needs all images in one folder: the split files are not used")


def _parents(roots: list[str | None], labels: list[str | None]) -> list[str] | None:
    """The folders above, if theirs are named train, val and test: the import knows this layout."""
    found: list[str] = []
    for paths in (roots, labels):
        parents = {str(PurePath(str(path)).parent) for path in paths}
        if len(parents) > 1 or tuple(PurePath(str(path)).name for path in paths) != _SPLITS:
            return None
        found += parents
    return found


def _path(given: Mapping[str, Any], split: str, key: str) -> str | None:
    path = given.get(f"{split}_{key}") or given.get(key)
    return None if path is None else str(PurePath(str(path)))


def _suffixes(given: Mapping[str, Any], todo: Import) -> None:
    for option, keys in (("--image-suffix", ("img_grep", "image_grep")), ("--mask-suffix", ("label_grep",))):
        pattern = str(next((given[key] for key in keys if given.get(key)), "*"))
        stem = pattern.rpartition(".")[0] if pattern.lower().endswith((".tif", ".tiff")) else pattern
        suffix = stem.lstrip("*")
        if pattern.lower().endswith(_OTHER_FORMATS):
            todo.notes.append(f"{pattern}: write these files as GeoTIFF; the import reads no other format")
        if set(suffix) & set("*?["):
            todo.notes.append(f"{pattern}: choose these files yourself; {option} is only the end of a name")
        elif suffix:
            todo.options[option] = [suffix]


def _file_bands(given: Mapping[str, Any], model: Mapping[str, Any]) -> list[str] | None:
    """Names of the bands in the files, in their order; None if the config does not tell them."""
    if given.get("dataset_bands") is not None:
        return names_of(given["dataset_bands"])
    shown, order = bands_of(model.get("model_args") or {}), given.get("filter_indices")
    if shown is None or given.get("output_bands") or given.get("bands"):
        return None
    if order is None:
        return shown  # without a choice, the model gets all bands
    return [shown[order.index(place)] for place in range(len(shown))] if sorted(order) == [*range(len(shown))] else None


def _unit(given: Mapping[str, Any]) -> str | None:
    means, scale = given.get("means"), given.get("constant_scale")
    if scale is not None and scale != 1:
        return UNIT
    if isinstance(means, list) and means:
        return "reflectance" if max(means) < _REFLECTANCE else UNIT
    return None if scale is None else "reflectance"


def _labels(given: Mapping[str, Any], model: Mapping[str, Any], todo: Import) -> None:
    count = given.get("num_classes") or (model.get("model_args") or {}).get("num_classes") or 2
    names = model.get("class_names") or given.get("class_names")
    if not names:
        names = ["background", *(f"class_{number}" for number in range(1, count))]
        todo.notes.append("name the classes with --classes")
    todo.options["--classes"] = [",".join(str(name).replace(",", " ") for name in names)]
    ignored = model.get("ignore_index")
    if given.get("reduce_zero_label"):
        todo.options["--class-values"] = [",".join(map(str, range(1, count + 1)))]
        todo.options["--label-nodata"] = ["0"]
    elif ignored not in (None, -1):
        todo.options["--label-nodata"] = [str(ignored)]


def _transforms(given: Mapping[str, Any], lines: Lines) -> int | None:
    """Side of the crops of train; a line for each step that nothing stands for."""
    crop = None
    for name, options in _steps(given.get("train_transform")):
        if name in _CROPS and isinstance(height := options.get("height"), int):
            crop = height
        elif name not in (*_FLIPS, *_NEEDLESS):
            lines.add(f"{_DATA}.train_transform", name, "left out: the dataset's chips are shown as they are")
    return crop


def _steps(transforms: object) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and options of each transform."""
    steps = transforms if isinstance(transforms, list) else []
    return [
        (str(step.get("class_path", "")).rpartition(".")[2], step.get("init_args") or {})
        for step in steps
        if isinstance(step, Mapping)
    ]
