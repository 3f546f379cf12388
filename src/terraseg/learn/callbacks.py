"""What a training writes to outputs/<experiment>: metrics.csv, timings.json and the bundle.

The folder is ``trainer.default_root_dir``, and its name is the experiment's.
"""

import csv
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from terraseg.contracts.bundle import SHARE_TARGET, write_bundle
from terraseg.core.files import atomic_path, file_lock, write_json
from terraseg.core.machine.memory import peak_memory
from terraseg.core.progress import Pulse
from terraseg.errors import ConfigError, TrainingError
from terraseg.learn.check.config import CLASSES
from terraseg.learn.models.load import weights_of
from terraseg.learn.task import SegmentationTask
from terraseg.learn.training.calibration import Calibration, calibrate
from terraseg.learn.training.make_bundle import bundle_info


class MetricsTable(Callback):
    """Write metrics.csv, one row per validation: epoch, step, the scores of val and the loss of train.

    A resumed training continues the table at the step where it resumed; `test` and `predict` do not change it, while
    Lightning's CSVLogger would start a new one.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """If a training is resumed, read the rows it has written."""
        self._path = Path(trainer.default_root_dir) / "metrics.csv"
        self._rows: list[dict[str, Any]] = []
        if trainer.ckpt_path is not None and self._path.is_file():
            with open(self._path, encoding="utf-8", newline="") as handle:
                self._rows = list(csv.DictReader(handle))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Add a row."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not _writes(trainer):
            return
        step = trainer.global_step
        scores = {
            name: round(float(value), 6)
            for name, value in sorted(trainer.callback_metrics.items())
            if name.startswith("val/") or name == "train/loss"  # the train scores of this epoch come later
        }
        self._rows = [row for row in self._rows if int(row["step"]) < step]
        self._rows.append({"epoch": trainer.current_epoch, "step": step, **scores})
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        with atomic_path(self._path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, columns)
            writer.writeheader()
            writer.writerows(self._rows)


class Timings(Callback):
    """Write timings.json at the end of a training: epochs, steps, hours, images per second, memory, parameters.

    Of a training that was resumed, the hours are the sum over its parts and the memory is their peak: main memory of
    the process in GB (10^9 bytes). Images per second include waiting for data, but not validation. Where standard error
    is no terminal, which has a progress bar, a line every 30 s says how far the training is.
    """

    def __init__(self) -> None:
        self._seconds = self._train_seconds = 0.0
        self._images = self._peak = 0

    def state_dict(self) -> dict[str, Any]:
        """What the training has used so far."""
        return {
            "seconds": self._elapsed(),
            "train_seconds": self._train_seconds,
            "images": self._images,
            "peak_memory": self._peak_memory(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from an earlier part of the training."""
        self._seconds, self._train_seconds = state_dict["seconds"], state_dict["train_seconds"]
        self._images, self._peak = state_dict["images"], state_dict["peak_memory"]

    def _peak_memory(self) -> int:
        return max(self._peak, peak_memory())

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._start

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Start the clock."""
        self._pulse = Pulse()
        self._start = self._last = time.monotonic()  # a resumed training may start in the middle of an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """The first batch of an epoch is timed from here."""
        self._last = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: object,  # noqa: ARG002
        batch: dict[str, Any],
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Count a batch."""
        now = time.monotonic()
        self._train_seconds += now - self._last
        self._images += len(batch["image"]) * trainer.world_size
        self._last = now
        if trainer.is_global_zero:
            self._pulse(lambda: _where(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Do not count a validation in the middle of an epoch as training."""
        self._last = time.monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        if not _writes(trainer):
            return
        write_json(
            Path(trainer.default_root_dir) / "timings.json",
            {
                "epochs": trainer.current_epoch,
                "steps": trainer.global_step,
                "hours": round(self._elapsed() / 3600, 5),
                "images_per_second": round(self._images / max(self._train_seconds, 1e-9), 2),
                "peak_memory_gb": round(self._peak_memory() / 1e9, 3),
                "parameters": sum(parameter.numel() for parameter in pl_module.parameters()),
                "trainable_parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
                "device": _name(pl_module.device),
            },
        )


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _where(trainer: Trainer) -> str:
    step = f"step {trainer.global_step} of {trainer.estimated_stepping_batches:.0f}"
    scores = [name for name in ("train/loss", "val/loss", "val/iou") if name in trainer.callback_metrics]
    return ", ".join([step, *(f"{name} {float(trainer.callback_metrics[name]):.3f}" for name in scores)])


class BundleWriter(Callback):
    """Write the bundle at the end of a training, from the checkpoint with the best ``val/iou``.

    A training on shares may choose the checkpoint with the lowest ``val/loss`` instead: where no pixel is half covered,
    the IoU is 0 all the time. One of more than two classes may choose that with the highest ``val/miou``.

    It maps the validation split to fit slope, intercept and threshold. Afterwards the task holds the weights of that
    checkpoint.

    Args:
        licence: of the backbone and its weights, an SPDX name; written to the bundle.
    """

    def __init__(self, licence: str) -> None:
        self.licence = licence
        self._held = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check before the training that there will be a best checkpoint.

        Raises:
            ConfigError: the task is not a `SegmentationTask`, or no ModelCheckpoint monitors what it should.
        """
        if not isinstance(pl_module, SegmentationTask):
            raise ConfigError(
                f"the model is {type(pl_module).__name__}, from the config or from a checkpoint that replaced it",
                expected=CLASSES["model"],
                fix="use a checkpoint that this experiment wrote",
            )
        if stage == "fit" and _writes(trainer):
            _best(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold the folder of the checkpoints: the bundle of two trainings at once would be that of either.

        Raises:
            BusyError: another training writes there.
        """
        assert isinstance(pl_module, SegmentationTask)  # noqa: S101 (setup checked it)
        if _writes(trainer) and (folder := _best(trainer, pl_module).dirpath):
            self._held.enter_context(file_lock(Path(folder) / ".lock", wait=False))

    def on_exception(self, *_: Any, **__: Any) -> None:  # noqa: ANN401  # Lightning's arguments
        """Release the folder."""
        self._held.close()

    teardown = on_exception

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write outputs/<experiment>/bundle.

        Raises:
            TrainingError: the training ended before any validation.
        """
        if not _writes(trainer):
            return
        assert isinstance(pl_module, SegmentationTask)  # noqa: S101 (setup checked it)
        best = _best(trainer, pl_module).best_model_path
        if not best:
            raise TrainingError("the training ended before its first validation", fix="train longer")
        pl_module.load_state_dict(torch.load(best, pl_module.device, weights_only=True)["state_dict"])
        calibration = _calibrate(trainer, pl_module)
        root = Path(trainer.default_root_dir)
        write_bundle(
            root / "bundle",
            info=bundle_info(
                pl_module.chips,
                calibration,
                experiment=root.resolve().name,
                weights=pl_module.weights_statement,
                licence=self.licence,
                target=pl_module.target,
                **{key: pl_module.hparams[key] for key in ("model_factory", "model_args", "positive_class")},
            ),
            weights=weights_of(pl_module.model),
            config=_config(pl_module),
        )
        rank_zero_info(
            f"Bundle in {root / 'bundle'}: validation IoU {calibration.iou:.3f} "
            f"at threshold {calibration.threshold:.3f}, "
            f"log-odds x {calibration.slope:.3f} {calibration.intercept:+.3f}"
        )


def _writes(trainer: Trainer) -> bool:
    dry_run: int = trainer.fast_dev_run  # type: ignore[attr-defined]  # set by a helper of Trainer.__init__
    return trainer.is_global_zero and not dry_run


def _best(trainer: Trainer, task: SegmentationTask) -> ModelCheckpoint:
    chosen_by = [("val/iou", "max"), ("val/loss", "min")] if task.target == SHARE_TARGET else [("val/iou", "max")]
    if int(task.hparams["model_args"]["num_classes"]) > 2:
        chosen_by.append(("val/miou", "max"))
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and (callback.monitor, callback.mode) in chosen_by:
            return callback
    named = " or ".join(f"monitor: {monitor} and mode: {mode}" for monitor, mode in chosen_by)
    raise ConfigError("no ModelCheckpoint chooses the best checkpoint", fix=f"add one with {named}")


def _calibrate(trainer: Trainer, task: SegmentationTask) -> Calibration:
    was_training = task.training
    task.eval()
    calibration = calibrate(
        lambda image: task(image).output,
        task.chips.val_mosaics(),
        positive=task.hparams["positive_class"],
        target=task.target,
        gsd=task.chips.dataset.info.gsd,
        device=task.device,
        batch_size=task.chips.batch_size,
        progress=bool(trainer.progress_bar_callback),
    )
    task.train(was_training)
    return calibration


def _config(task: SegmentationTask) -> str:
    """The config as the command line resolved it; if trained from Python, the task's arguments."""
    for callback in task.trainer.callbacks:
        if isinstance(callback, SaveConfigCallback):
            text: str = callback.parser.dump(callback.config, skip_none=False)
            return text
    return yaml.safe_dump(dict(task.hparams), sort_keys=False)
