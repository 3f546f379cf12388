"""The experiments differ in what they declare to differ, and in nothing else."""

from copy import deepcopy
from typing import Any

import pytest
import timm
import yaml

from helpers.factories import LAND_COVER
from helpers.paths import CONFIGS, ROOT
from terraseg.api.config import load_data_config
from terraseg.learn.check import model as check_model_module
from terraseg.learn.check.model import check_model
from terraseg.learn.models.build import build_model
from terraseg.learn.models.specs import SPECS

_COMPARISON = (
    "prithvi_upernet", "prithvi_v2_300_upernet", "prithvi_fcn",
    "prithvi_deeplabv3plus", "prithvi_lora", "terramind_fpn", "terramind_upernet",
    "baseline_unet", "baseline_unet_scratch", "baseline_deeplabv3plus",
    "baseline_deeplabv3plus_scratch", "baseline_segformer_b2", "baseline_segformer_b2_scratch",
)  # fmt: skip
_OTHER_BANDS = ("galileo_fpn", "satmae_upernet", "satmae_large_upernet", "scalemae_upernet")
"""Beside the comparison: their pretraining saw other bands than the six of Prithvi."""
_DATES = ("prithvi_multitemporal", "dates_unet")
_DEMO = ("demo_prithvi_tiny", "demo_unet", "ukis_unet")
_CITY = ("city_unet", "buildings_unet")
_FLOODS = {
    "floods_prithvi_upernet": "prithvi_v2_300_upernet",
    "floods_terramind_fpn": "terramind_fpn",
    "floods_baseline_unet": "baseline_unet",
}
"""Each with the experiment of the comparison that it is, on Sen1Floods11."""
_DEBUG = ("debug_overfit",)
_PRETRAINED = ("mae_fpn",)
"""From one's own pretraining (test_pretrain runs it)."""
_PRETRAININGS = {"pretrain_mae", "pretrain_cnn"}
"""No experiments: they have no labels."""
_LAND_COVER = ("landcover_unet",)
_EXPERIMENTS = _COMPARISON + _OTHER_BANDS + _DATES + _DEMO + _CITY + _DEBUG + _PRETRAINED + tuple(_FLOODS) + _LAND_COVER
_GRAPH = ("urban_graphsage",)
"""In the comparison too. Its model has no weights and no pretraining to describe; test_graph_terratorch runs it."""
_TRAINING = ROOT / "docs" / "training.md"


def _read(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return config


def _without_what_may_differ(name: str) -> dict[str, Any]:
    """Without the model, its weights, their licence and the experiment's folder."""
    config = deepcopy(_read(name))
    for key in ("model_factory", "model_args", "weights"):
        del config["model"]["init_args"][key]
    del _bundle_writer(config)["licence"]
    text = yaml.safe_dump(config)
    assert text.count(f"outputs/{name}\n") == 2, "default_root_dir and logger share the experiment's folder"
    assert text.count(f"outputs/{name}/checkpoints\n") == 2, "and so do the checkpoints"
    shared: dict[str, Any] = yaml.safe_load(text.replace(f"outputs/{name}", "outputs/X"))
    return shared


def _bundle_writer(config: dict[str, Any]) -> dict[str, Any]:
    (bundle,) = [each for each in config["trainer"]["callbacks"] if each["class_path"].endswith("BundleWriter")]
    arguments: dict[str, Any] = bundle["init_args"]
    return arguments


def test_each_experiment_is_held_to_what_it_declares() -> None:
    experiments = {path.stem for path in CONFIGS.glob("*.yaml") if "\nmodel:" in path.read_text(encoding="utf-8")}
    assert experiments == {*_EXPERIMENTS, *_GRAPH} | _PRETRAININGS


@pytest.mark.parametrize("names", [_COMPARISON + _GRAPH, _DEMO])
def test_experiments_that_are_compared_share_everything_but_model_weights_and_licence(names: tuple[str, ...]) -> None:
    first, *others = map(_without_what_may_differ, names)
    for other in others:
        assert other == first


@pytest.mark.parametrize("name", _OTHER_BANDS)
def test_the_other_foundation_models_differ_in_bands_too(name: str) -> None:
    config, shared = _without_what_may_differ(name), _without_what_may_differ("prithvi_upernet")
    del config["data"]["init_args"]["bands"], shared["data"]["init_args"]["bands"]
    assert config == shared


def test_the_own_pretraining_differs_from_the_comparison_in_its_model_alone() -> None:
    assert _without_what_may_differ("mae_fpn") == _without_what_may_differ("prithvi_upernet")
    pretrained, pretraining = _read("mae_fpn"), _read("pretrain_mae")
    arguments = pretrained["model"]["init_args"]
    assert arguments["weights"].startswith(pretraining["trainer"]["default_root_dir"])
    assert pretrained["data"]["init_args"]["bands"] == pretraining["data"]["bands"]
    assert arguments["model_args"]["backbone"] == pretraining["model"]["backbone"]
    assert arguments["model_args"]["backbone_patch_size"] == pretraining["model"]["backbone_args"]["patch_size"]


def test_several_dates_differ_from_one_in_the_dataset_and_what_the_model_is_told_of_them_alone() -> None:
    one, several = (_without_what_may_differ(name) for name in ("prithvi_upernet", "prithvi_multitemporal"))
    assert several["data"]["init_args"].pop("root") == "data/processed_multitemporal"
    one["data"]["init_args"].pop("root")
    assert several == one
    arguments = _read("prithvi_multitemporal")["model"]["init_args"]["model_args"]
    frames = load_data_config(CONFIGS / "multitemporal_data.yaml").prepare.frames
    assert frames == len(load_data_config(CONFIGS / "multitemporal_data.yaml").acquire.periods) == 3
    assert arguments["backbone_num_frames"] == arguments["necks"][1].pop("effective_time_dim") == frames
    assert {**arguments, "backbone_num_frames": 1} == _read("prithvi_upernet")["model"]["init_args"]["model_args"]


def test_the_two_experiments_of_several_dates_share_their_dataset_and_training() -> None:
    prithvi, unet = (_without_what_may_differ(name) for name in _DATES)
    assert unet["data"]["init_args"].pop("drop_dates") == 0.3
    assert unet == prithvi
    arguments = _read("dates_unet")["model"]["init_args"]["model_args"]
    one_date = {**_read("demo_unet")["model"]["init_args"]["model_args"], "head_dropout": 0.1}
    assert arguments == {**one_date, "date_fusion": "mean_max"}


@pytest.mark.parametrize("name", _EXPERIMENTS)
def test_each_names_the_licence_of_its_backbone_and_says_where_it_forbids_business(name: str) -> None:
    config = _read(name)
    spec = SPECS[config["model"]["init_args"]["model_args"]["backbone"]]
    assert _bundle_writer(config)["licence"] == spec.licence
    header = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").partition("seed_everything")[0]
    assert ("NON-COMMERCIAL" in header) == (not spec.commercial)
    assert f"terratorch fit --config configs/{name}.yaml" in header


@pytest.mark.parametrize("name", ["baseline_unet", "baseline_deeplabv3plus", "baseline_segformer_b2"])
def test_the_scratch_twin_differs_in_its_weights_alone(name: str) -> None:
    pretrained, scratch = _read(name), _read(f"{name}_scratch")
    assert pretrained["model"]["init_args"].pop("weights") == "hub"
    assert scratch["model"]["init_args"].pop("weights") == "random"
    assert pretrained["model"] == scratch["model"]
    assert _bundle_writer(pretrained) == _bundle_writer(scratch)


def test_the_baselines_start_from_the_same_resnet() -> None:
    names = {
        _read(name)["model"]["init_args"]["model_args"]["backbone"] for name in _COMPARISON if "scratch" not in name
    }
    assert {"timm_resnet50", "tu-resnet50.a1_in1k"} <= names
    assert timm.get_pretrained_cfg("resnet50").tag == "a1_in1k"


def test_lora_differs_from_full_training_in_its_adapters_alone() -> None:
    full, adapted = (_read(name)["model"]["init_args"] for name in ("prithvi_upernet", "prithvi_lora"))
    assert adapted["model_args"].pop("peft_config")["method"] == "LORA"
    assert adapted == full


def test_the_decoders_of_prithvi_are_compared_on_the_same_backbone() -> None:
    names = ("prithvi_upernet", "prithvi_fcn", "prithvi_deeplabv3plus")
    first, *others = (
        {key: value for key, value in _read(name)["model"]["init_args"]["model_args"].items() if "backbone" in key}
        for name in names
    )
    assert others == [first, first]


def test_debugging_differs_from_the_demo_in_its_chips_weights_and_rate_alone() -> None:
    demo, debug = (_read(name) for name in ("demo_unet", "debug_overfit"))
    assert debug["model"]["init_args"]["model_args"] == demo["model"]["init_args"]["model_args"]
    assert debug["model"]["init_args"].pop("weights") == "random"
    demo["model"]["init_args"].pop("weights")
    demo, debug = _without_what_may_differ("demo_unet"), _without_what_may_differ("debug_overfit")
    assert (demo["data"]["init_args"].pop("class_share"), debug["data"]["init_args"].pop("overfit")) == (0.5, 8)
    assert (demo["data"]["init_args"].pop("augment"), debug["data"]["init_args"].pop("augment")) == (True, False)
    assert (demo["model"]["init_args"].pop("lr"), debug["model"]["init_args"].pop("lr")) == (1e-3, 3e-3)
    assert debug == demo


def test_the_city_differs_from_the_demo_in_its_dataset_and_budget_alone() -> None:
    demo, city = (_without_what_may_differ(name) for name in ("demo_unet", "city_unet"))
    assert (demo["trainer"].pop("max_steps"), city["trainer"].pop("max_steps")) == (200, 120)
    assert (demo["data"]["init_args"].pop("root"), city["data"]["init_args"].pop("root")) == (
        "data/demo/processed", "data/city/processed",
    )  # fmt: skip
    assert city == demo
    assert _read("city_unet")["model"] == _read("demo_unet")["model"]


@pytest.mark.parametrize("name", _FLOODS)
def test_floods_differ_from_the_comparison_in_the_dataset_and_the_level_alone(name: str) -> None:
    floods, comparison = _without_what_may_differ(name), _without_what_may_differ(_FLOODS[name])
    assert floods["data"]["init_args"].pop("root") == "data/floods"
    comparison["data"]["init_args"].pop("root")
    assert floods == comparison
    model = yaml.safe_dump(_read(name)["model"]).replace("S2L1C", "S2L2A")  # TerraMind knows both levels
    assert yaml.safe_load(model) == _read(_FLOODS[name])["model"]


def test_land_cover_differs_from_the_comparison_in_the_dataset_and_its_classes_alone() -> None:
    land, comparison = _read("landcover_unet"), _read("baseline_unet")
    assert land["model"]["init_args"]["model_args"].pop("num_classes") == len(LAND_COVER)
    assert comparison["model"]["init_args"]["model_args"].pop("num_classes") == 2
    assert LAND_COVER[land["model"]["init_args"].pop("positive_class")] == "built area"
    assert comparison["model"]["init_args"].pop("positive_class") == 1
    assert land["model"] == comparison["model"]
    land, comparison = _without_what_may_differ("landcover_unet"), _without_what_may_differ("baseline_unet")
    for config, monitor, positive in ((land, "val/miou", 4), (comparison, "val/iou", 1)):
        assert config["trainer"]["callbacks"][1]["init_args"].pop("monitor") == monitor
        assert config["model"]["init_args"].pop("positive_class") == positive
        config["data"]["init_args"].pop("root")
    assert land == comparison


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


@pytest.mark.parametrize("name", _EXPERIMENTS)
@pytest.mark.usefixtures("without_memory")
def test_each_model_passes_the_check_and_is_described(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_model_module, "hub_answers", lambda: True)
    config = _read(name)
    frames = 3 if name in _DATES else 1
    bands = config["data"]["init_args"]["bands"]
    classes = LAND_COVER if name in _LAND_COVER else ("background", "building")
    assert check_model(config, bands=bands, classes=classes, frames=frames) == []
    findings = check_model(config, bands=bands, classes=classes, frames=2)
    if "date_fusion" in config["model"]["init_args"]["model_args"]:
        assert findings == []
    else:
        (finding,) = findings
        assert "2 dates" in str(finding) or "2 of each place" in str(finding)

    arguments = config["model"]["init_args"]
    model = build_model(arguments["model_factory"], arguments["model_args"])
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    spec = SPECS[arguments["model_args"]["backbone"]]
    row = _described()[name]
    assert row[0].strip("`") == arguments["model_args"]["backbone"]
    assert row[3].removesuffix(" (non-commercial)") == spec.licence
    assert row[3].endswith("(non-commercial)") == (not spec.commercial)
    assert row[4] == f"{trained / 1e6:.1f} M"


def _described() -> dict[str, list[str]]:
    """Rows of the table of experiments in docs/training.md."""
    rows = {}
    for line in _TRAINING.read_text(encoding="utf-8").splitlines():
        first, *others = [cell.strip() for cell in line.strip("|").split("|")]
        if len(others) == 5 and first.startswith("`"):
            rows[first.strip("`")] = others
    return rows
