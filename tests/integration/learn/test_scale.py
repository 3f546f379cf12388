"""docs/scale.md as it is written: two processes train as one experiment, and its commands and blocks are read."""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from terratorch.cli_tools import build_lightning_cli

from helpers.experiments import CONFIGS
from helpers.factories import make_dataset, make_scene, make_truth
from terraseg.learn.datamodule import ChipDataModule
from terraseg.learn.models.build import build_model
from terraseg.learn.training.scores import SegmentationScores

pytestmark = pytest.mark.usefixtures("in_home")

_TEXT = (CONFIGS.parent / "docs/scale.md").read_text(encoding="utf-8")
_COMMANDS = [line for line in _TEXT.splitlines() if " fit --config " in line and not line.startswith("#")]
_BLOCKS = [block for block in re.findall(r"```yaml\n(.*?)```", _TEXT, flags=re.DOTALL) if "logger" in block]
_ON_CPU = ("--trainer.accelerator=cpu", "--trainer.sync_batchnorm=false", "--trainer.precision=32-true")
_SMALL = (
    "--data.init_args.root=data/processed", "--data.init_args.batch_size=2", "--model.init_args.weights=random",
    "--model.init_args.model_args.decoder_channels=[8, 8, 8, 8, 8]",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset that nobody has packed yet."""
    home = tmp_path_factory.mktemp("home")
    truth = make_truth((320, 576))
    truth[::16, ::16] = 1
    make_dataset(home / "data/processed", make_scene(home, (320, 576), truth=truth), truth, tile_size=64)
    return home


def test_two_processes_train_as_one_experiment_and_score_each_chip_once() -> None:
    outputs = Path("outputs/demo_unet")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "terratorch", "fit",
        "--config", str(CONFIGS / "demo_unet.yaml"), "--config", str(CONFIGS / "scale_ddp.yaml"), *_ON_CPU, *_SMALL,
        "--trainer.devices=2", "--data.init_args.num_workers=0", "--trainer.max_steps=2",
        "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=4", "--data.init_args.class_share=null",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Starting with 2 processes" in done.stderr

    checkpoint = torch.load(outputs / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    module = ChipDataModule("data/processed", batch_size=2)
    module.setup("validate")
    assert len(module.val_dataloader().dataset) % 2 == 1, "an even number would not show a chip that counts twice"
    section = yaml.safe_load((CONFIGS / "demo_unet.yaml").read_text(encoding="utf-8"))["model"]["init_args"]
    model = build_model(section["model_factory"], {**section["model_args"], "decoder_channels": [8, 8, 8, 8, 8]})
    model.load_state_dict({key.removeprefix("model."): value for key, value in checkpoint["state_dict"].items()})
    scores = SegmentationScores(prefix="", classes=module.class_names, positive=1)
    with torch.inference_mode():
        for batch in module.val_dataloader():
            scores.update(model.eval()(batch["image"]).output.argmax(1), batch["mask"])
    with open(outputs / "metrics.csv", newline="") as handle:
        (row,) = csv.DictReader(handle)
    found, expected = float(row["val/iou"]), float(scores.compute()["iou"])
    assert found == pytest.approx(expected, abs=1e-4)
    assert expected > 0
    assert (outputs / "bundle").is_dir()


@pytest.mark.parametrize("command", _COMMANDS)
@pytest.mark.usefixtures("without_memory")
def test_the_commands_are_read(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    arguments = words[words.index("fit") + 1 :]
    root = Path("data/processed").resolve()
    monkeypatch.chdir(CONFIGS.parent)
    cli = build_lightning_cli([*arguments, *_ON_CPU[:2], f"--data.init_args.root={root}"], run=False)
    assert cli.trainer.precision == "bf16-mixed"
    if "configs/scale_ddp.yaml" in words:
        assert isinstance(cli.trainer.strategy, DDPStrategy)
        assert cli.datamodule.num_workers == 4
    assert cli.trainer.num_nodes == (2 if "--trainer.num_nodes" in words else 1)


def test_both_trackers_are_added_to_tensorboard(tmp_path: Path) -> None:
    found = set()
    for number, block in enumerate(_BLOCKS):
        (path := tmp_path / f"{number}.yaml").write_text(block, encoding="utf-8")
        cli = build_lightning_cli(
            ["--config", str(CONFIGS / "demo_unet.yaml"), "--config", str(path), *_ON_CPU, *_SMALL], run=False
        )
        kept, added = cli.trainer.loggers
        assert type(kept).__name__ == "TensorBoardLogger"
        found.add(type(added))
    assert found == {MLFlowLogger, WandbLogger}
