"""A training that is killed and resumed gives what the unbroken one gives, to the last bit of its weights."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from terratorch.__main__ import main

from helpers.factories import make_dataset, make_scene, make_truth
from helpers.killer import TrainingKilledError
from helpers.paths import TESTS
from terraseg.contracts.bundle import open_bundle
from terraseg.errors import ConfigError

_OUTPUTS = Path("outputs/demo_unet")
_LAST = str(_OUTPUTS / "checkpoints/last.ckpt")
_FIT = [
    "fit", "--config", str(TESTS.parent / "configs/demo_unet.yaml"), "--trainer.accelerator=cpu",
    "--trainer.logger=false", "--data.init_args.batch_size=4", "--model.init_args.weights=random",
    "--model.init_args.model_args.decoder_channels=[8, 8, 8, 8, 8]", "--model.init_args.model_args.head_dropout=0.3",
    "--model.init_args.model_args.backbone_drop_path_rate=0.3",
]  # fmt: skip
_BY_STEPS = ["--trainer.max_steps=12", "--trainer.val_check_interval=3"]  # an epoch has 4 batches
_BY_EPOCHS = [
    "--trainer.max_steps=-1", "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=1",
    "--trainer.val_check_interval=1.0", "--model.init_args.scheduler=CosineAnnealingLR",
    "--model.init_args.scheduler_hparams={T_max: 3}", "--data.init_args.class_share=null",
    "--trainer.callbacks+=terraseg.learn.freeze.FreezeBackbone", "--trainer.callbacks.epochs=2",
]  # fmt: skip


def _kill(batch: int, *, hard: bool = False) -> list[str]:
    return [
        "--trainer.callbacks+=helpers.killer.KillAt",
        f"--trainer.callbacks.batch={batch}",
        f"--trainer.callbacks.hard={hard}",
    ]


def _fit(*arguments: str) -> None:
    before = sys.argv
    sys.argv = ["terratorch", *_FIT, *arguments]
    try:
        main()
    finally:
        sys.argv = before


@pytest.fixture(autouse=True)
def _in_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    truth = make_truth((256, 512))
    make_dataset(tmp_path / "data/demo/processed", make_scene(tmp_path / "raw", (256, 512)), truth, tile_size=64)
    monkeypatch.chdir(tmp_path)
    hook = sys.excepthook
    yield
    sys.excepthook = hook


def _result() -> tuple[list[dict[str, str]], dict[str, Any], str]:
    with open(_OUTPUTS / "metrics.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    return rows, torch.load(_LAST, weights_only=True), open_bundle(_OUTPUTS / "bundle").info.weights_hash


def _assert_like_unbroken(unbroken: tuple[list[dict[str, str]], dict[str, Any], str]) -> None:
    rows, last, weights = _result()
    assert rows == unbroken[0]
    torch.testing.assert_close(last["state_dict"], unbroken[1]["state_dict"], rtol=0, atol=1e-6)
    torch.testing.assert_close(last["optimizer_states"], unbroken[1]["optimizer_states"], rtol=0, atol=1e-6)
    assert last["lr_schedulers"] == unbroken[1]["lr_schedulers"]
    assert weights == unbroken[2], "the best checkpoint is another one"


def test_a_training_killed_in_the_middle_of_an_epoch_resumes_at_its_last_validation() -> None:
    _fit(*_BY_STEPS)
    unbroken = _result()
    shutil.rmtree(_OUTPUTS)
    command = [str(Path(sys.executable).with_name("terratorch")), *_FIT, *_BY_STEPS, *_kill(8, hard=True)]
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    killed = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert torch.load(_LAST, weights_only=True)["global_step"] == 6  # two batches into the second epoch
    assert not (_OUTPUTS / "bundle").exists()
    _fit(*_BY_STEPS, "--ckpt_path", _LAST)
    _assert_like_unbroken(unbroken)


@pytest.mark.parametrize(
    ("batch", "workers"), [(6, 0), (10, 1)], ids=["backbone frozen", "backbone unfrozen, with a worker"]
)
def test_a_training_killed_goes_on_from_its_last_epoch(batch: int, workers: int) -> None:
    options = [*_BY_EPOCHS, f"--data.init_args.num_workers={workers}"]
    _fit(*options)
    unbroken = _result()
    shutil.rmtree(_OUTPUTS)
    with pytest.raises(TrainingKilledError):
        _fit(*options, *_kill(batch))
    assert torch.load(_LAST, weights_only=True)["global_step"] == batch - 2
    _fit(*options, "--ckpt_path", _LAST)
    _assert_like_unbroken(unbroken)


@pytest.mark.parametrize(
    ("schedule", "short", "longer"),
    [
        ([], "--trainer.max_steps=4", ["--trainer.max_steps=8"]),
        (
            ["--model.init_args.scheduler=CosineAnnealingLR", "--trainer.max_steps=-1"],
            "--trainer.max_epochs=1",
            ["--trainer.max_epochs=2", "--model.init_args.scheduler_hparams={T_max: 2}"],
        ),
    ],
    ids=["OneCycleLR", "CosineAnnealingLR"],
)
def test_a_finished_schedule_is_not_continued_by_a_longer_training(
    schedule: list[str], short: str, longer: list[str]
) -> None:
    options = [*schedule, "--trainer.val_check_interval=4"]
    cosine = ["--model.init_args.scheduler_hparams={T_max: 1}"] if schedule else []
    _fit(*options, short, *cosine)
    before = Path(_LAST).read_bytes()
    with pytest.raises(ConfigError) as caught:
        _fit(*options, *longer, "--ckpt_path", _LAST)
    old, new = (1, 2) if schedule else (4, 8)
    assert f" {old}, this training has {new}" in str(caught.value)
    assert "--ckpt_path" in str(caught.value)
    assert Path(_LAST).read_bytes() == before
