"""The model section of an old config as one of terraseg."""

from collections.abc import Mapping, Sequence
from typing import Any

from terraseg.core.bands import BANDS, PRITHVI_BANDS, band
from terraseg.errors import ConfigError, SceneError
from terraseg.learn.migrate.lines import Lines, plain, short
from terraseg.learn.migrate.recognise import stock_class
from terraseg.learn.migrate.table import (
    BACKBONES,
    DEPTHS,
    GONE,
    KEPT_ARGS,
    KEPT_PREFIXES,
    KEPT_TASK,
    MODEL_ARGS,
    TASK,
)
from terraseg.learn.training.losses import LOSSES

_ARGS, _TASK = "model.init_args.model_args", "model.init_args"
_FACTORIES = {"": "EncoderDecoderFactory", "PrithviModelFactory": "EncoderDecoderFactory"}
_SOURCES = tuple(key for key, rule in MODEL_ARGS.items() if rule.to == "weights")
_IN_CHANNELS = ("in_channels", "backbone_in_channels", "backbone_in_chans")
_PYRAMID = ("UperNetDecoder", "UNetDecoder", "smp_FPN")
"""Decoders that take four scales; see docs/training.md, Decoders and their necks."""

_S2 = {"S2L1C": tuple(each.terratorch for each in BANDS), "S2RGB": ("RED", "GREEN", "BLUE")}
"""TerraMind's bands of each modality, if the config names none; else those of S2L2A."""


def check_task(section: Mapping[str, Any]) -> None:
    """The task is segmentation of Sentinel-2 with one model of TerraTorch.

    Raises:
        ConfigError: it is not, and can't be converted.
    """
    task, given = stock_class(section), section.get("init_args") or {}
    if task not in (None, "SemanticSegmentationTask"):
        raise ConfigError(
            f"the model is a {task}; terraseg trains segmentation only",
            expected="SemanticSegmentationTask",
            fix="train this config with terratorch itself, or make classes of its target and change the task",
        )
    factory, arguments = given.get("model_factory") or "", given.get("model_args") or {}
    if factory not in (*_FACTORIES, "EncoderDecoderFactory", "SMPModelFactory"):
        fix = "choose a backbone of `terraseg models` and a decoder"
        raise ConfigError(f"model_factory is {factory}", expected="EncoderDecoderFactory or SMPModelFactory", fix=fix)
    backbone = str(arguments.get("backbone"))
    for start, note in GONE.items():
        if backbone.lower().startswith(start):
            raise ConfigError(f"the backbone is {backbone}", fix=note)
    modalities = arguments.get("backbone_modalities") or []
    if len(modalities) > 1:
        raise ConfigError(
            f"backbone_modalities are {', '.join(map(str, modalities))}; terraseg reads Sentinel-2 alone",
            expected="one of S2L2A, S2L1C",
            fix="keep S2L2A alone in the modalities of model and data, and convert again",
        )


def bands_of(arguments: Mapping[str, Any]) -> list[str] | None:
    """Bands that ``model_args`` names, in TerraTorch's names; None if it names none.

    Raises:
        ConfigError: a band that Sentinel-2 does not have.
    """
    named = next(
        (arguments[key] for key in ("backbone_bands", "bands", "backbone_model_bands") if key in arguments), None
    )
    return names_of(named)


def names_of(bands: object) -> list[str] | None:
    """A list of bands, or that of a single modality, in TerraTorch's names; None if they are not all names.

    Raises:
        ConfigError: a band that Sentinel-2 does not have.
    """
    if isinstance(bands, Mapping) and len(bands) == 1:
        bands = next(iter(bands.values()))
    if not isinstance(bands, Sequence) or isinstance(bands, str) or not all(isinstance(each, str) for each in bands):
        return None
    try:
        return [band(each.removeprefix("HLSBands.")).terratorch for each in bands]
    except SceneError as error:
        raise ConfigError(
            error.found, expected=error.expected, fix="leave it out: terraseg reads Sentinel-2"
        ) from error


def check_channels(arguments: Mapping[str, Any], bands: Sequence[str]) -> None:
    """The model has as many channels as there are bands.

    Raises:
        ConfigError: it has another number.
    """
    for key in _IN_CHANNELS:
        if isinstance(count := arguments.get(key), int) and count != len(bands):
            raise ConfigError(
                f"{_ARGS}.{key} is {count}, the bands are {', '.join(bands)}",
                expected=f"the names of {count} bands",
                fix="name them in data.init_args.output_bands and convert again",
            )


def usual_bands(arguments: Mapping[str, Any], lines: Lines) -> list[str]:
    """Bands of a backbone if the config names none."""
    bands = _usual_bands(arguments)
    lines.add("", "", f"bands: {short(bands)}; the config names none, and these are usual for the backbone")
    return bands


def _usual_bands(arguments: Mapping[str, Any]) -> list[str]:
    modalities = arguments.get("backbone_modalities")
    if not modalities:
        return [band(name).terratorch for name in PRITHVI_BANDS]
    twelve = tuple(each.terratorch for each in BANDS if each.name != "B10")
    return list(_S2.get(str(modalities[0]), twelve))


def model_section(section: Mapping[str, Any], bands: Sequence[str], lines: Lines) -> dict[str, Any]:
    """The section, with the bands of the data.

    Args:
        section: of a config that `check_task` accepts.
        bands: in TerraTorch's names.
        lines: gets what changed.
    """
    given, task = section.get("init_args") or {}, stock_class(section)
    factory = str(given.get("model_factory") or "")
    old = given.get("model_args") or {}
    made: dict[str, Any] = {"weights": "hub", "loss": "ce", "positive_class": 1}
    if task:
        made["optimizer"] = "Adam"  # the stock task's default
        lines.add("model.class_path", section.get("class_path"), "terraseg.learn.task.SegmentationTask")
    for key, value in given.items():
        if key in KEPT_TASK:
            made[key] = plain(value)
        elif key not in ("model_args", "model_factory", "loss", "class_weights"):
            _task_key(key, value, made, lines)
    made["loss"] = _loss(given.get("loss", "ce"), lines)
    if (weights := given.get("class_weights")) is not None:
        if "ce" in made["loss"]:
            made["class_weights"] = plain(weights)
        else:
            lines.leave_out(f"{_TASK}.class_weights", weights, TASK["class_weights"])
    made = {key: value for key, value in made.items() if value is not None and value != {}}
    made["model_factory"] = _FACTORIES.get(factory, factory)
    if made["model_factory"] != given.get("model_factory"):
        lines.add(f"{_TASK}.model_factory", given.get("model_factory"), f"model_factory: {made['model_factory']}")
    smp = made["model_factory"] == "SMPModelFactory"
    if task and factory == "EncoderDecoderFactory":
        made["weights"] = "random"  # as TerraTorch without backbone_pretrained
    made["weights"] = _weights(old, lines, default=made["weights"])
    if not any(key in old for key in _SOURCES):
        lines.add("", "", f"weights: {made['weights']}, TerraTorch's default; the published ones are hub")
    if (count := old.get("num_classes", 2)) > 2:
        lines.add("", "", f"positive_class: 1, the one of {count} that val/iou and the map describe")
    made["model_args"] = (_smp_args if smp else _encoder_decoder_args)(old, bands, lines)
    return {"class_path": "terraseg.learn.task.SegmentationTask", "init_args": made}


def _task_key(key: str, value: object, made: dict[str, Any], lines: Lines) -> None:
    rule = TASK.get(key)
    if key == "output_most_probable" and value is False:
        made["output_on_inference"] = "probabilities"
        lines.add(f"{_TASK}.{key}", value, "output_on_inference: probabilities")
    elif key == "output_on_inference":
        made[key] = value[0] if isinstance(value, list) else value
        if made[key] != value:
            lines.add(f"{_TASK}.{key}", value, f"{key}: {made[key]}")
    elif key == "lr_overrides" and isinstance(value, Mapping):
        made[key] = {name.replace("backbone", "encoder."): rate for name, rate in value.items()}
        if made[key] != value:
            lines.add(f"{_TASK}.{key}", value, f"{key}: {short(made[key])}")
    elif key == "ignore_index" and value == -1:
        pass
    else:
        lines.leave_out(f"{_TASK}.{key}", value, rule)


def _loss(loss: Any, lines: Lines) -> Any:  # noqa: ANN401
    old = loss if isinstance(loss, Mapping) else dict.fromkeys([loss] if isinstance(loss, str) else loss or ["ce"], 1.0)
    made: dict[str, float] = {}
    for name, factor in old.items():
        known = name if name in LOSSES else "lovasz" if name == "jaccard" else "ce"
        made[known] = made.get(known, 0) + factor
        if known != name:
            lines.add(f"{_TASK}.loss", name, f"loss: {known}")
    return next(iter(made)) if isinstance(loss, str) and len(made) == 1 else made


def _weights(old: Mapping[str, Any], lines: Lines, *, default: str) -> str:
    """Where the pretrained weights come from: a file, if any key names one."""
    keys = [key for key in _SOURCES if key in old and (old[key] is not None or key.endswith("pretrained"))]
    sources = [_source(old[key]) for key in keys]
    weights = next((each for each in sources if each not in ("hub", "random")), next(iter(sources), default))
    for key in keys:
        lines.add(f"{_ARGS}.{key}", old[key], f"{_TASK}.weights: {weights}")
    return weights


def _source(value: object) -> str:
    if isinstance(value, Mapping):
        value = value.get("file") or value.get("url")
    return "random" if not value else "hub" if value in (True, "imagenet") else str(value)


def _smp_args(old: Mapping[str, Any], bands: Sequence[str], lines: Lines) -> dict[str, Any]:
    made = {"backbone": old.get("backbone"), "model": old.get("model"), "bands": list(bands), "in_channels": len(bands)}
    if "bands" in old and names_of(old["bands"]) != list(bands):
        lines.add(f"{_ARGS}.bands", old["bands"], f"bands: {short(list(bands))}, of the data")
    for key, value in old.items():
        if key in ("num_classes",) or (key.startswith(("smp_", "backbone_")) and key not in MODEL_ARGS):
            made[key] = plain(value)
        elif key not in (*made, "pretrained") and (key not in MODEL_ARGS or MODEL_ARGS[key].to != "weights"):
            lines.leave_out(f"{_ARGS}.{key}", value, MODEL_ARGS.get(key))
    return made


def _encoder_decoder_args(old: Mapping[str, Any], bands: Sequence[str], lines: Lines) -> dict[str, Any]:
    name = str(old.get("backbone")).removeprefix("terratorch_")
    name = name.removeprefix("timm_") if name.startswith("timm_prithvi") else name
    name = BACKBONES.get(name, name)
    transformer = name.startswith(("prithvi", "terramind"))
    if name != old.get("backbone"):
        lines.add(f"{_ARGS}.backbone", old.get("backbone"), f"backbone: {name}")
    made: dict[str, Any] = {"backbone": name}
    for key, value in old.items():
        rule = MODEL_ARGS.get(key)
        if rule is None and (key in KEPT_ARGS or key.startswith(KEPT_PREFIXES)):
            made[key] = plain(value)
        elif rule is None or (not rule.to and not (key in _IN_CHANNELS and not transformer)):
            lines.leave_out(f"{_ARGS}.{key}", value, rule)
    if name.startswith("terramind"):
        modality = str((old.get("backbone_modalities") or ["S2L2A"])[0])
        made |= {"backbone_modalities": [modality], "backbone_bands": {modality: list(bands)}}
    elif name.startswith("timm_") or not (transformer or "backbone_bands" in old or "bands" in old):
        made.pop("backbone_bands", None)
        made["backbone_in_chans"] = len(bands)
    else:
        made["backbone_bands"] = list(bands)
    if "backbone_bands" in old and "backbone_bands" in made and names_of(old["backbone_bands"]) != list(bands):
        lines.add(
            f"{_ARGS}.backbone_bands", old["backbone_bands"], f"backbone_bands: {short(list(bands))}, of the data"
        )
    for key in ("bands", "backbone_model_bands", *_IN_CHANNELS):
        today = "backbone_bands" if "backbone_bands" in made else "backbone_in_chans"
        if key in old and key != today and not (key in _IN_CHANNELS and transformer):
            lines.add(f"{_ARGS}.{key}", old[key], f"{today}: {short(made[today])}")
    if name.startswith("prithvi"):
        made["backbone_num_frames"] = old.get("num_frames", old.get("backbone_num_frames", 1))
        if "num_frames" in old:
            lines.add(f"{_ARGS}.num_frames", old["num_frames"], f"backbone_num_frames: {old['num_frames']}")
    if transformer:
        _add_necks(old, made, lines)
    made.setdefault("num_classes", 2)
    return made


def _add_necks(old: Mapping[str, Any], made: dict[str, Any], lines: Lines) -> None:
    """The necks of a transformer: those of the file, with what it said elsewhere, or those that fit the decoder."""
    decoder, name = str(old.get("decoder")), str(made["backbone"])
    depth = next((blocks for part, blocks in DEPTHS.items() if part in name), 12)
    pyramid = {"name": "LearnedInterpolateToPyramidal"}
    reshape = {"name": "ReshapeTokensToImage", **({"remove_cls_token": False} if name.startswith("terramind") else {})}
    if (frames := made.get("backbone_num_frames", 1)) > 1:
        reshape["effective_time_dim"] = frames
    taps = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
    given = plain(old.get("necks") or old.get("post_backbone_ops") or [])
    necks = given or [
        {"name": "SelectIndices", "indices": taps if decoder in _PYRAMID else taps[-1:]},
        reshape,
        *([pyramid] if decoder in _PYRAMID else []),
    ]
    for neck in necks:
        if neck.get("name") == "SelectIndices" and any(index >= depth for index in neck.get("indices", [])):
            few = f"{name} has {depth} blocks: {taps}"
            lines.add(f"{_ARGS}.necks.SelectIndices.indices", neck["indices"], few)
            neck["indices"] = taps
        if neck.get("name") == "ReshapeTokensToImage" and (new := reshape | neck) != neck:
            lines.add(f"{_ARGS}.necks.ReshapeTokensToImage", plain(neck), short(new))
            neck |= new
    if old.get("decoder_scale_modules") and pyramid not in necks:
        necks.append(pyramid)
    made["necks"] = necks
    made.pop("decoder_scale_modules", None)
    for key in ("post_backbone_ops", "decoder_scale_modules"):
        if key in old:
            lines.add(f"{_ARGS}.{key}", old[key], f"necks: {', '.join(neck['name'] for neck in necks)}")
    if not given:
        lines.add("", "", f"{_ARGS}.necks: {', '.join(neck['name'] for neck in necks)}")
