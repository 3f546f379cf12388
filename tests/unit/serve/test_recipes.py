"""A recipe and a request make a config that trains on the dataset, and never on random weights by itself."""

import pytest
import torch
import yaml

from helpers.factories import make_dataset, make_scene, make_truth
from helpers.paths import CONFIGS
from helpers.services import FACTS
from terraseg.errors import ConfigError
from terraseg.learn.check.run import check
from terraseg.learn.models.build import build_model, check_inputs
from terraseg.serve.http_errors import NotThereError
from terraseg.serve.jobs.recipes import find_recipes, resolve
from terraseg.serve.schema import Facts, InferenceMetadata, NewModel, TrainingMetadata, checked


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    truth = make_truth((256, 512))
    return make_dataset(root / "dataset", make_scene(root / "raw", (256, 512), truth=truth), truth, tile_size=64)


def _resolved(folder, recipe="demo_unet", facts=None, **asked):
    metadata = checked(TrainingMetadata, {"weights": "random", **asked})
    known = Facts.model_validate({**FACTS, **(facts or {})})
    return resolve(metadata, recipe, recipes=CONFIGS, weights=folder / "w", facts=known)


def test_recipes_are_the_experiments_that_train_on_any_dataset():
    names = {recipe.name for recipe in find_recipes(CONFIGS)}
    experiments = {path.stem for path in CONFIGS.glob("*.yaml") if "model_factory:" in path.read_text()}
    assert experiments - names == {"debug_overfit"}
    assert {"baseline_unet", "prithvi_upernet", "galileo_fpn", "demo_unet"} <= names <= experiments
    unet = next(recipe for recipe in find_recipes(CONFIGS) if recipe.name == "baseline_unet")
    assert unet.about.startswith("U-Net with a ResNet-50")
    assert (unet.backbone, unet.weights, unet.licence, len(unet.bands)) == ("timm_resnet50", "hub", "Apache-2.0", 6)


@pytest.mark.parametrize("recipe", ["baseline_unet", "baseline_segformer_b2", "prithvi_upernet", "demo_prithvi_tiny"])
@pytest.mark.parametrize("length", [{"steps": 7}, {"epochs": 3}, {}])
def test_a_resolved_recipe_passes_the_check(dataset, tmp_path, monkeypatch, recipe, length):
    asked = {"batch_size": 4, "seed": 5, "fraction": 0.5, "weight_decay": 0.1, "frozen_backbone": True, **length}
    metadata, config = _resolved(tmp_path, recipe, **asked)
    monkeypatch.chdir(dataset.root.parent)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert [each for each in check(tmp_path / "config.yaml", model=False) if each.severity == "error"] == []
    trainer, data, model = config["trainer"], config["data"]["init_args"], config["model"]["init_args"]
    assert (config["seed_everything"], data["seed"], data["fraction"], data["batch_size"]) == (5, 5, 0.5, 4)
    assert (model["weights"], model["lr"], model["freeze_backbone"]) == ("random", 1.5e-5, True)
    assert model["optimizer_hparams"]["weight_decay"] == 0.1
    if "steps" in length:
        assert (trainer["max_steps"], trainer["val_check_interval"]) == (7, 2)
        assert (trainer.get("max_epochs"), metadata.epochs) == (None, None)
    else:
        epochs = length.get("epochs", 100)
        assert (trainer["max_epochs"], trainer["max_steps"], metadata.epochs) == (epochs, -1, epochs)
    placed = [
        trainer["default_root_dir"],
        *(each["init_args"]["dirpath"] for each in trainer["callbacks"] if "dirpath" in each.get("init_args", {})),
    ]
    assert all(folder.startswith(f"outputs/{recipe}") for folder in placed)
    assert len(placed) == 3


def test_the_metadata_is_complete(tmp_path):
    metadata, _ = _resolved(tmp_path, facts={"sizes": [[300, 250]], "label_values": [0, 1, 2, 255]}, ignore_index=255)
    assert (metadata.num_classes, metadata.CLASSES) == (3, ("class_0", "class_1", "class_2"))
    assert (metadata.tile_size, metadata.batch_size, metadata.positive) == (224, 8, "class_1")
    assert metadata.loss == {"ce": 1.0, "dice": 1.0}
    assert metadata.bands == ("B02", "B03", "B04", "B8A", "B11", "B12")
    small, _ = _resolved(tmp_path, facts={"images": {"train": 3, "val": 1, "test": 1}, "sizes": [[20, 40]]})
    assert (small.tile_size, small.batch_size) == (64, 1)


def test_random_weights_are_never_fallen_back_to(tmp_path):
    assert "hub-or-random" in (CONFIGS / "demo_prithvi_tiny.yaml").read_text()
    metadata, config = _resolved(tmp_path, "demo_prithvi_tiny", weights=None)
    assert metadata.weights == config["model"]["init_args"]["weights"] == "hub"
    with pytest.raises(ConfigError, match="weights: .*pattern"):
        _resolved(tmp_path, weights="../secret")
    with pytest.raises(ConfigError, match="'hub-or-random'; expected hub, random; .*put"):
        _resolved(tmp_path, weights="hub-or-random")
    with pytest.raises(ConfigError, match="'tf_efficientnet_lite0.safetensors'") as caught:
        _resolved(tmp_path, weights=None)
    assert str(tmp_path) not in str(caught.value)  # a path of the server is not the user's concern
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "tf_efficientnet_lite0.safetensors").touch()
    _, config = _resolved(tmp_path, weights=None)
    assert config["model"]["init_args"]["weights"] == "tf_efficientnet_lite0.safetensors"


def test_bands_reach_data_and_model_in_the_names_that_each_knows(tmp_path):
    _, unet = _resolved(tmp_path, bands=["red", "B3", "BLUE"])
    assert unet["data"]["init_args"]["bands"] == ["B04", "B03", "B02"]
    assert unet["model"]["init_args"]["model_args"]["backbone_in_chans"] == 3
    _, former = _resolved(tmp_path, "baseline_segformer_b2", bands=["B04", "B03"])
    assert former["model"]["init_args"]["model_args"]["bands"] == ["RED", "GREEN"]
    assert former["model"]["init_args"]["model_args"]["in_channels"] == 2
    _, mind = _resolved(tmp_path, "terramind_fpn", bands=["B04", "B03"])
    assert mind["model"]["init_args"]["model_args"]["backbone_bands"] == {"S2L2A": ["RED", "GREEN"]}


@pytest.mark.parametrize(
    ("recipe", "facts", "asked", "message"),
    [
        ("galileo_fpn", {}, {}, "takes the band B05, B06, B07, B08, which the dataset does not have"),
        ("demo_unet", {}, {"bands": ["B99"]}, "unknown band 'B99'"),
        ("demo_unet", {}, {"num_frames": 2}, "num_frames is 2, but .* 1; expected 1"),
        ("demo_unet", {"num_frames": 3}, {"num_frames": 2}, "num_frames is 2, but .* 3; expected 3"),
        ("demo_unet", {}, {"positive": "flood"}, "no class 'flood'; expected one of class_0, class_1"),
        ("demo_unet", {}, {"ignore_classes": ["sea"]}, "no class 'sea'"),
        ("demo_unet", {"label_values": [0, 1, 7]}, {"num_classes": 2}, "num_classes is 2, but .* value 7"),
        ("demo_unet", {"label_values": [0, 255]}, {}, "values up to 255; expected 0 to 127"),
        ("demo_unet", {"labelled": False}, {}, "no ground truth"),
        ("demo_unet", {}, {"img_norm_cfg": {"means": [1], "stds": [1]}}, "1 means; expected 6"),
    ],
)
def test_what_does_not_fit_the_dataset_is_an_error_at_once(tmp_path, recipe, facts, asked, message):
    with pytest.raises(ConfigError, match=message):
        _resolved(tmp_path, recipe, facts, **asked)


@pytest.mark.parametrize("dates", [1, 3])
@pytest.mark.parametrize("recipe", ["demo_unet", "dates_unet", "prithvi_upernet", "prithvi_multitemporal"])
def test_a_base_model_takes_the_dates_of_the_dataset(tmp_path, recipe, dates):
    metadata, config = _resolved(tmp_path, recipe, {"num_frames": dates})
    arguments, data = config["model"]["init_args"]["model_args"], config["data"]["init_args"]
    assert metadata.num_frames == dates
    check_inputs(arguments, bands=data["bands"], classes=metadata.CLASSES, frames=dates)
    assert (data.get("drop_dates", 0) > 0) == (recipe == "dates_unet" and dates > 1)
    if recipe == "demo_unet":
        model = build_model("EncoderDecoderFactory", arguments).eval()
        shape = (1, 6, 64, 64) if dates == 1 else (1, 6, dates, 64, 64)
        assert model(torch.zeros(shape)).output.shape == (1, 2, 64, 64)


def test_unknown_base_models_are_named_with_the_known_ones(tmp_path):
    for name in ("unet", "debug_overfit", "city_data"):
        with pytest.raises(NotThereError, match=f"no base model '{name}'; expected one of baseline_deeplabv3plus, "):
            _resolved(tmp_path, name)


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (TrainingMetadata, {"learning_rate": 1}, "learning_rate: unknown key"),
        (TrainingMetadata, {"steps": 1}, "steps: .*greater than or equal to 2"),
        (TrainingMetadata, {"steps": 9, "epochs": 1}, "steps and epochs"),
        (TrainingMetadata, {"fraction": 0}, "fraction: "),
        (TrainingMetadata, {"num_classes": 3, "CLASSES": ["a", "b"]}, "num_classes is 3, but CLASSES has 2"),
        (TrainingMetadata, {"CLASSES": ["a", "a"]}, "a name twice"),
        (TrainingMetadata, {"num_frames": 0}, "num_frames: "),
        (InferenceMetadata, {"num_frames": 2}, "num_frames: only for fine_tune"),
        (TrainingMetadata, {"img_norm_cfg": {"means": [1, 2], "stds": [1]}}, "2 means and 1 stds"),
        (TrainingMetadata, [], "valid dictionary"),
        (InferenceMetadata, {"epochs": 3, "lr": 1}, "epochs, lr: only for fine_tune"),
        (InferenceMetadata, {"colour": 3}, "colour: unknown key"),
        (InferenceMetadata, {"threshold": 1.5}, "threshold: "),
        (NewModel, {"base_model": "../b", "dataset_id": "a"}, "base_model: "),
    ],
)
def test_requests_that_can_not_be_are_errors_by_key(model, values, message):
    with pytest.raises(ConfigError, match=message):
        checked(model, values)
