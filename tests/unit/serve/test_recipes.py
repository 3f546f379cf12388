"""A recipe and a request make a config that trains on the dataset, and never on random weights by itself."""

import pytest
import yaml

from helpers.factories import make_dataset, make_scene, make_truth
from helpers.paths import CONFIGS
from terraseg.errors import ConfigError, SceneError
from terraseg.learn.check.run import check
from terraseg.serve.http_errors import NotThereError
from terraseg.serve.recipes import find_recipes, resolve
from terraseg.serve.schema import AskedTraining, AskedUpload, checked


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    truth = make_truth((256, 512))
    return make_dataset(root / "processed", make_scene(root / "raw", (256, 512), truth=truth), truth, tile_size=64)


def _resolved(dataset, folder, **asked):
    given = {"dataset": "made", "recipe": "demo_unet", **asked}
    return resolve(AskedTraining(**given), recipes=CONFIGS, weights=folder / "w", dataset=dataset, output=folder / "o")


def test_recipes_are_the_experiments_that_train_on_any_dataset():
    names = {recipe.name for recipe in find_recipes(CONFIGS)}
    experiments = {path.stem for path in CONFIGS.glob("*.yaml") if "model_factory:" in path.read_text()}
    assert experiments - names == {"debug_overfit", "prithvi_multitemporal"}
    assert {"baseline_unet", "prithvi_upernet", "galileo_fpn", "demo_unet"} <= names <= experiments
    unet = next(recipe for recipe in find_recipes(CONFIGS) if recipe.name == "baseline_unet")
    assert unet.about.startswith("U-Net with a ResNet-50")
    assert (unet.backbone, unet.weights, unet.licence, len(unet.bands)) == ("timm_resnet50", "hub", "Apache-2.0", 6)


@pytest.mark.parametrize("recipe", ["baseline_unet", "baseline_segformer_b2", "prithvi_upernet", "demo_prithvi_tiny"])
@pytest.mark.parametrize("length", [{"steps": 7}, {"epochs": 3}, {}])
def test_a_resolved_recipe_passes_the_check(dataset, tmp_path, recipe, length):
    config = _resolved(dataset, tmp_path, recipe=recipe, weights="random", batch_size=4, seed=5, fraction=0.5, **length)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert [finding for finding in check(path, model=False) if finding.severity == "error"] == []
    trainer, data, model = config["trainer"], config["data"]["init_args"], config["model"]["init_args"]
    assert (config["seed_everything"], data["seed"], data["fraction"], data["batch_size"]) == (5, 5, 0.5, 4)
    assert data["root"] == str(dataset.root)
    assert model["weights"] == "random"
    if "steps" in length:
        assert (trainer["max_steps"], trainer["val_check_interval"]) == (7, 2)
        assert trainer.get("max_epochs") is None
    if "epochs" in length:
        assert (trainer["max_epochs"], trainer["max_steps"], trainer["check_val_every_n_epoch"]) == (3, -1, 1)
    placed = [
        trainer["default_root_dir"],
        *(each["init_args"]["dirpath"] for each in trainer["callbacks"] if "dirpath" in each.get("init_args", {})),
    ]
    assert all(folder.startswith(str(tmp_path / "o" / recipe)) for folder in placed)
    assert len(placed) == 3


def test_random_weights_are_never_fallen_back_to(dataset, tmp_path):
    assert "hub-or-random" in (CONFIGS / "demo_prithvi_tiny.yaml").read_text()
    assert _resolved(dataset, tmp_path, recipe="demo_prithvi_tiny")["model"]["init_args"]["weights"] == "hub"
    with pytest.raises(ConfigError, match="weights: .*pattern"):
        checked(AskedTraining, {"dataset": "a", "recipe": "b", "weights": "../secret"})
    with pytest.raises(ConfigError, match="'hub-or-random'; expected hub, random; .*put"):
        _resolved(dataset, tmp_path, weights="hub-or-random")


def test_weights_are_files_of_the_services_folder(dataset, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "mine.safetensors").touch()
    asked = _resolved(dataset, tmp_path, weights="mine.safetensors")
    assert asked["model"]["init_args"]["weights"] == str(tmp_path / "w" / "mine.safetensors")
    with pytest.raises(ConfigError, match=r"'other.pt'; expected hub, random, mine.safetensors"):
        _resolved(dataset, tmp_path, weights="other.pt")


def test_bands_reach_data_and_model_in_the_names_that_each_knows(dataset, tmp_path):
    unet = _resolved(dataset, tmp_path, bands=["red", "B3", "BLUE"])
    assert unet["data"]["init_args"]["bands"] == ["B04", "B03", "B02"]
    assert unet["model"]["init_args"]["model_args"]["backbone_in_chans"] == 3
    former = _resolved(dataset, tmp_path, recipe="baseline_segformer_b2", bands=["B04", "B03"])
    assert former["model"]["init_args"]["model_args"]["bands"] == ["RED", "GREEN"]
    assert former["model"]["init_args"]["model_args"]["in_channels"] == 2
    mind = _resolved(dataset, tmp_path, recipe="terramind_fpn", bands=["B04", "B03"])
    assert mind["model"]["init_args"]["model_args"]["backbone_bands"] == {"S2L2A": ["RED", "GREEN"]}
    with pytest.raises(SceneError, match="unknown band 'B99'"):
        _resolved(dataset, tmp_path, bands=["B99"])


def test_classes_are_the_datasets(dataset, tmp_path):
    config = _resolved(dataset, tmp_path, positive="background")
    assert config["model"]["init_args"]["positive_class"] == 0
    assert config["model"]["init_args"]["model_args"]["num_classes"] == 2
    with pytest.raises(ConfigError, match="no class 'flood'; expected one of background, building"):
        _resolved(dataset, tmp_path, positive="flood")


def test_unknown_recipes_are_named_with_the_known_ones(dataset, tmp_path):
    for name in ("unet", "debug_overfit", "city_data"):
        with pytest.raises(NotThereError, match=f"no recipe '{name}'; expected one of baseline_deeplabv3plus, "):
            _resolved(dataset, tmp_path, recipe=name)


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (AskedTraining, {"recipe": "a"}, "dataset: Field required"),
        (AskedTraining, {"dataset": "a", "recipe": "../b"}, "recipe: "),
        (AskedTraining, {"dataset": "a", "recipe": "b", "lr": 1}, "lr: unknown key"),
        (AskedTraining, {"dataset": "a", "recipe": "b", "steps": 1}, "steps: .*greater than or equal to 2"),
        (AskedTraining, {"dataset": "a", "recipe": "b", "steps": 9, "epochs": 1}, "steps and epochs"),
        (AskedTraining, {"dataset": "a", "recipe": "b", "fraction": 0}, "fraction: "),
        (AskedTraining, [], "valid dictionary"),
        (AskedUpload, {"size": 1, "images": "../x"}, "'../x'"),
        (AskedUpload, {"size": 1, "masks": "/etc"}, "'/etc'"),
        (AskedUpload, {"size": 1, "options": {"tile_size": 2, "colour": 1}}, "options.tile_size: .*options.colour"),
    ],
)  # fmt: skip
def test_requests_that_can_not_be_are_refused_by_key(model, values, message):
    with pytest.raises(ConfigError, match=message):
        checked(model, values)
