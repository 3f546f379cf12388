"""The experiments differ in what they declare to differ, and in nothing else."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from terraseg.learn.model import build_model, check_inputs
from terraseg.learn.specs import SPECS

_CONFIGS = Path(__file__).parents[2] / "configs"
_COMPARISON = ("prithvi_upernet", "terramind_fpn", "baseline_unet", "baseline_unet_scratch")
_OTHER_BANDS = ("galileo_fpn", "satmae_upernet", "scalemae_upernet")
"""Beside the comparison: their pretraining saw other bands than the six of Prithvi, and their licences differ."""
_DEMO = ("demo_prithvi_tiny", "demo_unet")


def _read(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((_CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return config


def _without_what_may_differ(name: str) -> dict[str, Any]:
    config = deepcopy(_read(name))
    for key in ("model_args", "weights"):
        del config["model"]["init_args"][key]
    text = yaml.safe_dump(config)
    assert text.count(f"outputs/{name}") == 4, "default_root_dir, logger and checkpoints share the experiment's folder"
    shared: dict[str, Any] = yaml.safe_load(text.replace(f"outputs/{name}", "outputs/X"))
    return shared


@pytest.mark.parametrize("names", [_COMPARISON, _DEMO])
def test_experiments_that_are_compared_share_everything_but_model_and_weights(names: tuple[str, ...]) -> None:
    first, *others = map(_without_what_may_differ, names)
    assert others == [first] * len(others)


def _without_bands_and_licence(name: str) -> dict[str, Any]:
    config = _without_what_may_differ(name)
    del config["data"]["init_args"]["bands"]
    (bundle,) = [each for each in config["trainer"]["callbacks"] if each["class_path"].endswith("BundleWriter")]
    del bundle["init_args"]["licence"]
    return config


@pytest.mark.parametrize("name", _OTHER_BANDS)
def test_the_other_foundation_models_differ_in_bands_and_licence_too(name: str) -> None:
    assert _without_bands_and_licence(name) == _without_bands_and_licence("prithvi_upernet")


@pytest.mark.parametrize("name", _COMPARISON + _OTHER_BANDS + _DEMO)
def test_each_names_the_licence_of_its_backbone_and_says_where_it_forbids_business(name: str) -> None:
    config = _read(name)
    (bundle,) = [each for each in config["trainer"]["callbacks"] if each["class_path"].endswith("BundleWriter")]
    spec = SPECS[config["model"]["init_args"]["model_args"]["backbone"]]
    assert bundle["init_args"]["licence"] == spec.licence
    header = (_CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").partition("seed_everything")[0]
    assert ("NON-COMMERCIAL" in header) == (not spec.commercial)


def test_the_scratch_twin_differs_in_its_weights_alone() -> None:
    pretrained, scratch = (_read(name)["model"]["init_args"] for name in ("baseline_unet", "baseline_unet_scratch"))
    assert pretrained.pop("weights") == "hub"
    assert scratch.pop("weights") == "random"
    assert pretrained == scratch


def test_the_demo_differs_from_the_comparison_in_its_data_and_budget_alone() -> None:
    comparison, demo = _without_what_may_differ("prithvi_upernet"), _without_what_may_differ("demo_unet")
    for key in ("max_epochs", "max_steps", "check_val_every_n_epoch", "val_check_interval"):
        comparison["trainer"].pop(key, None)
        demo["trainer"].pop(key, None)
    comparison["model"]["init_args"].pop("lr")
    demo["model"]["init_args"].pop("lr")
    assert demo["data"]["init_args"].pop("class_share") == 0.5
    assert demo["data"]["init_args"].pop("root") == "data/demo/processed"
    assert comparison["data"]["init_args"].pop("root") == "data/processed"
    assert demo == comparison


@pytest.mark.parametrize("name", _COMPARISON + _OTHER_BANDS + _DEMO)
def test_each_model_is_built_and_declared_for_the_bands_of_its_data(name: str) -> None:
    config = _read(name)
    arguments = config["model"]["init_args"]
    build_model(arguments["model_factory"], arguments["model_args"])
    check_inputs(
        arguments["model_args"], bands=config["data"]["init_args"]["bands"], classes=["background", "building"]
    )
