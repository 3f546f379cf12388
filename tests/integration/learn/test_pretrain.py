"""`terraseg pretrain`: its encoder starts an experiment, and a stopped pretraining ends like an unbroken one."""

from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from helpers.experiments import CONFIGS, terratorch
from helpers.factories import make_scene, make_set
from helpers.killer import TrainingKilledError
from terraseg import pretrain
from terraseg.cli import main
from terraseg.contracts.bundle import open_bundle
from terraseg.core.bands import PRITHVI_BANDS
from terraseg.errors import CheckpointError, TrainingError

pytestmark = pytest.mark.usefixtures("in_home")

_SMALL = [
    "data.batch_size=4", "data.num_workers=0", "trainer.max_steps=2", "trainer.accelerator=cpu",
    "trainer.logger=false",
]  # fmt: skip
_TINY = {
    "pretrain_mae": ["model.method_args.decoder_width=32", "model.backbone_args.patch_size=8"],
    "pretrain_cnn": ["model.method_args.decoder_channels=[8, 8, 8, 8, 8]"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset of chips of 64 px, and scenes without labels, of other bands and sizes."""
    home = tmp_path_factory.mktemp("home")
    make_set(home)
    make_scene(home / "data/raw", (96, 130), name="a")
    make_scene(home / "data/raw", (80, 70), ("B01", *reversed(PRITHVI_BANDS)), name="b", seed=1)
    return home


def _set(changes: list[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


@pytest.mark.parametrize(
    ("pretraining", "experiment"), [("pretrain_mae", "mae_fpn"), ("pretrain_cnn", "demo_unet")], ids=["mae", "cnn"]
)
def test_an_experiment_starts_from_the_encoder(pretraining: str, experiment: str) -> None:
    config = str(CONFIGS / f"{pretraining}.yaml")
    assert main(["check", config]) == 0
    assert main(["pretrain", "--config", config, *_set([*_SMALL, *_TINY[pretraining]])]) == 0
    encoder = Path("outputs") / pretraining / "encoder.safetensors"
    with safe_open(encoder, framework="pt") as file:
        assert all(file.get_tensor(key).isfinite().all() for key in file.keys())  # noqa: SIM118
    terratorch(
        "fit", "-c", str(CONFIGS / f"{experiment}.yaml"), "--data.init_args.root=data/processed",
        "--data.init_args.batch_size=4", f"--model.init_args.weights={encoder}", "--trainer.max_steps=1",
        "--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=1", "--trainer.limit_val_batches=2",
        "--trainer.logger=false",
    )  # fmt: skip
    method = yaml.safe_load((CONFIGS / f"{pretraining}.yaml").read_text())["model"]["method"]
    said = open_bundle(f"outputs/{experiment}/bundle").info.weights
    assert said.startswith(f"terraseg pretrain ({method}, 2 steps, 2 scenes): encoder.safetensors, sha256 ")


@pytest.mark.parametrize("name", _TINY)
def test_a_stopped_pretraining_ends_like_an_unbroken_one(name: str) -> None:
    config = CONFIGS / f"{name}.yaml"
    changes = [
        *_SMALL, *_TINY[name], "trainer.max_steps=9", "trainer.callbacks+=ModelCheckpoint",
        "trainer.callbacks.every_n_train_steps=3", "trainer.callbacks.dirpath=kept", "trainer.callbacks.filename=last",
        "trainer.callbacks.enable_version_counter=false", "trainer.accumulate_grad_batches=2",
    ]  # fmt: skip
    if name == "pretrain_mae":
        changes.append("model.backbone_args.drop_path=0.2")
    whole = pretrain(config=config, changes=changes).read_bytes()
    kill = ["trainer.callbacks+=helpers.killer.KillAt", "trainer.callbacks.batch=12"]
    Path("kept/last.ckpt").unlink()
    with pytest.raises(TrainingKilledError):
        pretrain(config=config, changes=[*changes, *kill])
    resumed = pretrain(config=config, ckpt_path="kept/last.ckpt", changes=[*changes, "data.num_workers=1"])
    assert resumed.read_bytes() == whole
    with pytest.raises(CheckpointError, match="another seed: 0 there, 1 here"):
        pretrain(config=config, ckpt_path="kept/last.ckpt", changes=[*changes, "data.seed=1"])
    with pytest.raises(CheckpointError, match="another lr"):
        pretrain(config=config, ckpt_path="kept/last.ckpt", changes=[*changes, "model.lr=0.5"])
    with pytest.raises(TrainingError, match="nothing is left"):
        pretrain(config=config, ckpt_path="kept/last.ckpt", changes=changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.bands=[B02, B11, B09]"], ["no band B09"]),
        (["data.chip_size=60"], ["chip_size is 60", "multiple of 8"]),
        (["data.scenes=[nowhere]"], ["nowhere"]),
        (["trainer.max_steps=-1"], ["max_steps"]),
        (["model.backbone=timm_tf_efficientnet_lite0", "model.backbone_args=null"], ["mae_vit_tiny"]),
        (["model.backbone_args={patch: 8}"], ["'patch'"]),
        (["model.lurning_rate=1"], ["lurning_rate"]),
        (["data.batch_size=0"], ["batch_size 0"]),
    ],
)
def test_errors_are_one_line(changes: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pretrain", "--config", str(CONFIGS / "pretrain_mae.yaml"), *_set([*_SMALL, *changes])]
    assert main(command) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("terraseg: ")]
    assert all(word in line for word in words), line


def test_missing_files_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--config", "none.yaml"]) == 2
    command = ["pretrain", "--config", str(CONFIGS / "pretrain_mae.yaml"), "--ckpt_path", "none.ckpt"]
    assert main(command) == 2
    assert "none.yaml" in (said := capsys.readouterr().err)
    assert "none.ckpt" in said
