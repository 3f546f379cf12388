"""The model part of the check, which imports TerraTorch: names, keys, bands, and whether the model builds."""

import difflib
import importlib
import inspect
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser
from terratorch.cli_tools import import_custom_modules
from terratorch.registry import BACKBONE_REGISTRY, DECODER_REGISTRY, NECK_REGISTRY

from terraseg.learn.check.config import check_old_names, declared_licence
from terraseg.learn.check.finding import Finding, attempt, error, warning
from terraseg.learn.migrate.table import BACKBONES
from terraseg.learn.models.build import build_model, check_inputs
from terraseg.learn.models.licences import licence_of
from terraseg.learn.models.weights import HUB, HUB_OR_RANDOM, RANDOM, hub_answers
from terraseg.learn.models.wheels import WHEELS

_ARGS = "model.init_args.model_args"


def check_model(
    config: Mapping[str, Any], *, bands: Sequence[str] | None, classes: Sequence[str], frames: int = 1
) -> list[Finding]:
    """All of the model part.

    Args:
        config: an experiment's YAML, parsed.
        bands: ESA names of the data's bands; None if the dataset can't be opened.
        classes: their names.
        frames: dates per chip.
    """
    model = config["model"].get("init_args") or {}
    arguments = model.get("model_args") or {}
    findings = check_keys(config) + check_custom_modules(config)
    today = _with_new_names(model)  # the config part has told the old ones; this one tells what else is wrong
    names = check_names(model.get("model_factory"), today)
    findings += names
    if bands is not None:
        findings += attempt(
            _ARGS,
            lambda: check_inputs(
                {**arguments, "num_classes": len(classes)}, bands=bands, classes=classes, frames=frames
            ),
        )[1]
    if not names:
        findings += attempt(_ARGS, lambda: build_model(str(model.get("model_factory")), today))[1]
    weights = str(model.get("weights", HUB))
    if (wheel := WHEELS.get(weights)) is not None:
        backbone = str(arguments.get("backbone"))
        findings += attempt("model.init_args.weights", lambda: wheel.check(backbone=backbone, bands=bands or ()))[1]
    return findings + check_weights(weights, arguments, licence=declared_licence(config))


def _with_new_names(model: Mapping[str, Any]) -> dict[str, Any]:
    """``model_args`` without what `check_old_names` reports."""
    old = {finding.key.rpartition(".")[2] for finding in check_old_names(model)}
    arguments = model.get("model_args") or {}
    kept = {key: value for key, value in arguments.items() if key not in old or key == "backbone"}
    return kept if "backbone" not in old else {**kept, "backbone": BACKBONES[str(arguments["backbone"])]}


def check_keys(config: Mapping[str, Any]) -> list[Finding]:
    """The classes of data and model exist, and accept each key and its value."""
    findings = []
    for section in ("data", "model"):
        path = str(config[section].get("class_path", ""))
        module, _, name = path.rpartition(".")
        try:
            kind = getattr(importlib.import_module(module), name)
            known, types = inspect.signature(kind).parameters, get_type_hints(kind.__init__)
        except (ImportError, AttributeError, ValueError):
            findings.append(error(f"{section}.class_path", f"there is no class {path!r}", expected="terraseg.learn..."))
            continue
        for key, value in (config[section].get("init_args") or {}).items():
            where = f"{section}.init_args.{key}"
            if key not in known:
                findings.append(_unknown(where, key, known))
            elif key in types and not _is_of(types[key], value):
                findings.append(error(where, f"{value!r}", expected=_named(types[key])))
    return findings


def _is_of(kind: Any, value: object) -> bool:  # noqa: ANN401
    """Whether the stock command's parser accepts a value."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        parser.parse_object({"value": value})
    except ArgumentError:
        return False
    return True


def _named(kind: Any) -> str:  # noqa: ANN401
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def check_custom_modules(config: Mapping[str, Any]) -> list[Finding]:
    """The folder of the user's own modules can be imported, as the stock command does before it builds the model."""
    path = config.get("custom_modules_path")
    try:
        import_custom_modules(path)
    except (ImportError, ValueError) as fault:
        return [error("custom_modules_path", f"{path} can't be imported ({fault})", expected="a folder of modules")]
    return []


def check_names(factory: str | None, arguments: Mapping[str, Any]) -> list[Finding]:
    """Backbone, decoder and necks are in TerraTorch's registries."""
    if factory != "EncoderDecoderFactory":
        return []  # segmentation-models-pytorch has its own names; `build_model` checks them
    asked: list[tuple[str, Any, Any]] = [
        (f"{_ARGS}.{key}", arguments.get(key), registry)
        for key, registry in (("backbone", BACKBONE_REGISTRY), ("decoder", DECODER_REGISTRY))
    ]
    asked += [
        (f"{_ARGS}.necks.{index}.name", neck.get("name"), NECK_REGISTRY)
        for index, neck in enumerate(arguments.get("necks") or [])
    ]
    return [_unknown(key, str(name), registry) for key, name, registry in asked if str(name) not in registry]


def check_weights(weights: str, arguments: Mapping[str, Any], *, licence: str | None) -> list[Finding]:
    """The pretrained weights are available, and their licence is the one that the bundle will state."""
    findings, backbone = [], str(arguments.get("backbone"))
    if weights in (HUB, HUB_OR_RANDOM) and not hub_answers():
        findings.append(
            warning(
                "model.init_args.weights",
                f"{weights}: the hub doesn't answer",
                expected=f"{backbone} in the local cache",
                fix="connect to the internet, or set weights to a local file or to random",
            )
        )
    known = licence_of(backbone)
    if weights == RANDOM or licence is None:
        return findings
    key = "trainer.callbacks.BundleWriter.licence"
    if known is None:
        findings.append(
            warning(key, f"{licence}: terraseg does not know the licence of {backbone}", fix="read its model card")
        )
    elif known.lower() != licence.lower():
        findings.append(error(key, licence, expected=f"{known}, the licence of the weights of {backbone}"))
    return findings


def _unknown(key: str, name: str, known: Any) -> Finding:  # noqa: ANN401  # a registry or a mapping
    close = difflib.get_close_matches(name, [str(entry).removeprefix("terratorch_") for entry in known])
    return error(key, f"unknown name {name!r}", fix=f"did you mean {' or '.join(close)}?" if close else "correct it")
