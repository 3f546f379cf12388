"""The task of every experiment, for `terratorch fit|test|predict`: TerraTorch's keys without its traps."""

# ruff: noqa: ARG002  # Lightning reads the constructor's arguments from its frame and defines the signatures

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from terratorch.tasks.base_task import TerraTorchTask
from terratorch.tasks.optimizer_factory import optimizer_factory
from terratorch.tasks.tiled_inference import tiled_inference
from torch import Tensor, nn

from terraseg.contracts.bundle import SHARE_TARGET
from terraseg.contracts.dataset import IGNORE
from terraseg.errors import CheckpointError, ConfigError, TrainingError
from terraseg.learn.check.config import CLASSES, check_limits, check_schedule, losses_of
from terraseg.learn.check.data import check_held
from terraseg.learn.check.finding import Finding, raise_errors
from terraseg.learn.check.target import check_target, target_of
from terraseg.learn.datamodule import ChipDataModule
from terraseg.learn.models.build import (
    build_model,
    check_inputs,
    decoder_of,
    encoder_of,
    is_adapted,
    pad_to_stride,
    set_statistics,
    superpixel_rule,
)
from terraseg.learn.models.weights import load_weights
from terraseg.learn.training.criterion import SegmentationLoss, balanced_class_weights
from terraseg.learn.training.experiment_folder import keep_together
from terraseg.learn.training.make_bundle import RECORD, check_record, record_of
from terraseg.learn.training.one_line_errors import one_line_errors
from terraseg.learn.training.quiet import leave_out_noise
from terraseg.learn.training.resume import check_resumed_schedule, seed_step
from terraseg.learn.training.scores import SegmentationScores

FROM_DATA = "from_data"
"""Value of ``class_weights`` that stands for `balanced_class_weights`."""


class SegmentationTask(TerraTorchTask):  # type: ignore[misc]
    """Semantic segmentation of chips, by class_path in a config of the stock `terratorch` command.

    Differences from TerraTorch's own task:

    * Pixels of class -1 count in no loss and no score.
    * `weights` says where the backbone's weights come from, and the checkpoint records it.
    * The model section of the config is the one that runs. TerraTorch silently replaces it by the checkpoint's; here a
      checkpoint of another model, other bands or other statistics raises an error.
    * `test` and `predict` without a checkpoint raise an error: they would run with random weights.
    * A loss that is not a number stops the training, and the error names the tiles.

    Args:
        model_factory: ``EncoderDecoderFactory`` or ``SMPModelFactory``.
        model_args: the factory's arguments, without ``pretrained``.
        weights: ``hub``, ``hub-or-random``, ``random`` or a file, see `terraseg.learn.models.weights`.
        loss: a name in `terraseg.learn.training.losses.LOSSES`; a list of names adds several losses, a mapping of names
            to factors adds them with these factors. With ``share`` the probability is the covered share of the pixel.
        class_weights: factor of each class in ``ce``, or ``from_data`` for `balanced_class_weights` of the dataset.
        ignore_index: -1, the only value that the masks use.
        positive_class: id of the class that ``val/iou`` and ``val/f1`` describe.
        lr: (highest) learning rate.
        optimizer: a class of ``torch.optim``.
        optimizer_hparams: its further arguments.
        scheduler: a class of ``torch.optim.lr_scheduler``; ``OneCycleLR`` spans the whole training by default.
        scheduler_hparams: its arguments, and ``interval`` (``epoch`` or ``step``).
        lr_overrides: learning rate by a part of the parameters' names.
        freeze_backbone: train only decoder and head. Not with adapters (`peft_config` in ``model_args``): those freeze
            the backbone themselves, and are trained.
        freeze_decoder: do not train the decoder.
        plot_on_val: epochs between the samples drawn into the logger; 0: never.
        output_on_inference: what `predict` writes: the class (``prediction``), ``probabilities`` or ``logits``.
        tiled_inference_parameters: arguments of TerraTorch's tiled inference in `predict`.
        matmul_precision: of float32 products; importing TerraTorch lowers it to ``medium`` for the whole process.
    """

    ignore = None  # torchgeo would leave `weights` out of the hyperparameters

    def __init__(
        self,
        model_factory: str,
        model_args: dict[str, Any],
        weights: str = "hub",
        loss: str | list[str] | dict[str, float] = "ce",
        class_weights: list[float] | Literal["from_data"] | None = None,
        ignore_index: int = IGNORE,
        positive_class: int = 1,
        lr: float = 1e-3,
        optimizer: str = "AdamW",
        optimizer_hparams: dict[str, Any] | None = None,
        scheduler: str | None = None,
        scheduler_hparams: dict[str, Any] | None = None,
        lr_overrides: dict[str, float] | None = None,
        freeze_backbone: bool = False,
        freeze_decoder: bool = False,
        plot_on_val: bool | int = False,
        output_on_inference: Literal["prediction", "probabilities", "logits"] = "prediction",
        tiled_inference_parameters: dict[str, Any] | None = None,
        matmul_precision: Literal["highest", "high", "medium"] = "highest",
    ) -> None:
        one_line_errors()
        leave_out_noise()
        self.tiled_inference_parameters = tiled_inference_parameters
        self.weights_statement = ""
        self._has_weights = False
        self._stored_schedules: list[dict[str, Any]] = []
        super().__init__(task="segmentation", plot_on_val=plot_on_val)
        self.monitor = "val/loss"

    def configure_callbacks(self) -> list[Callback]:
        """None of its own. This is the first hook of a run: nothing has been written yet."""
        keep_together(self.trainer)
        return []

    # --- building ---

    def configure_models(self) -> None:
        """Build the architecture; the weights are loaded when a training starts."""
        self.model = build_model(self.hparams["model_factory"], self.hparams["model_args"])
        self.model.register_load_state_dict_post_hook(self._weights_loaded)  # type: ignore[no-untyped-call]
        if self.hparams["freeze_backbone"] and is_adapted(self.model):
            raise ConfigError(
                "freeze_backbone would freeze the adapters too", fix="remove it: peft_config freezes the backbone"
            )
        if self.hparams["freeze_backbone"]:
            encoder_of(self.model).requires_grad_(False)
        if self.hparams["freeze_decoder"]:
            decoder_of(self.model).requires_grad_(False)

    def configure_losses(self) -> None:
        """Build the loss; class weights from the data are set in `setup`."""
        if self.hparams["ignore_index"] != IGNORE:
            raise ConfigError(f"ignore_index is {self.hparams['ignore_index']}", expected=f"{IGNORE}, as in the masks")
        loss, class_weights = self.hparams["loss"], self.hparams["class_weights"]
        self.target = target_of(losses_of(self.hparams))
        factors = loss if isinstance(loss, Mapping) else dict.fromkeys([loss] if isinstance(loss, str) else loss, 1.0)
        self.criterion = SegmentationLoss(factors, class_weights=[] if class_weights == FROM_DATA else class_weights)

    def configure_metrics(self) -> None:
        """Nothing yet: `setup` reads the class names from the data."""

    def configure_optimizers(self) -> object:
        """Optimizer and schedule, made by TerraTorch from their names."""
        options, groups = dict(self.hparams["scheduler_hparams"] or {}), self._parameter_groups()
        if self.hparams["scheduler"] == "OneCycleLR":
            steps = int(self.trainer.estimated_stepping_batches)
            top = [
                group.get("lr", self.hparams["lr"]) for group in groups
            ]  # a single number would override lr_overrides
            options = {"max_lr": top, "total_steps": steps, "interval": "step", **options}
        try:
            return optimizer_factory(
                self.hparams["optimizer"],
                self.hparams["lr"],
                groups,
                self.hparams["optimizer_hparams"],
                self.hparams["scheduler"],
                self.monitor,
                options,
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"the optimizer or its schedule can't be made: {error}") from error

    def _parameter_groups(self) -> list[dict[str, Any]]:
        groups, rest = [], dict(self.named_parameters())
        for part, lr in (self.hparams["lr_overrides"] or {}).items():
            chosen = [name for name in rest if part in name]
            if not chosen:
                raise ConfigError(f"lr_overrides: no parameter has {part!r} in its name")
            groups.append({"params": [rest.pop(name) for name in chosen], "lr": lr})
        return [*groups, {"params": list(rest.values())}]

    def _weights_loaded(self, *_: object) -> None:
        self._has_weights = True

    # --- checks before anything runs ---

    @property
    def chips(self) -> ChipDataModule:
        """The datamodule.

        Raises:
            ConfigError: there is none, or it is not a `ChipDataModule`.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ChipDataModule):
            raise ConfigError(f"data is {type(data).__name__}", expected=f"class_path {CLASSES['data']}")
        return data

    def setup(self, stage: str) -> None:
        """Check config, data and command line against each other; a checkpoint is loaded afterwards.

        Raises:
            ConfigError: they contradict each other.
        """
        torch.set_float32_matmul_precision(self.hparams["matmul_precision"])
        frames = self.chips.dataset.info.frames
        check_inputs(self.hparams["model_args"], bands=self.chips.bands, classes=self.chips.class_names, frames=frames)
        set_statistics(self.model, means=self.chips.means, stds=self.chips.stds)
        self.chips.superpixels = superpixel_rule(self.model)
        raise_errors(check_target(self.chips.dataset, target=self.target, positive=self.hparams["positive_class"]))
        self.chips.shares = self.target == SHARE_TARGET
        self._set_class_weights()
        self._check_command(stage)
        for split in ("train", "val", "test"):
            scores = SegmentationScores(
                prefix=f"{split}/", classes=self.chips.class_names, positive=self.hparams["positive_class"]
            )
            setattr(self, f"{split}_metrics", scores if split != "test" else nn.ModuleList([scores]))

    def _set_class_weights(self) -> None:
        weights = self.hparams["class_weights"]
        if weights is None:
            return
        if weights == FROM_DATA:
            weights = balanced_class_weights(self.chips.dataset, self.chips.chips_of("train"))
            rank_zero_info("Class weights from the data: " + ", ".join(f"{weight:.3g}" for weight in weights))
        names = self.chips.class_names
        if len(weights) != len(names):
            raise ConfigError(f"class_weights has {len(weights)}", expected=f"{len(names)} ({', '.join(names)})")
        self.criterion.class_weights = torch.tensor(weights, dtype=torch.float32)

    def _check_command(self, stage: str) -> None:
        if "configure_optimizers" in vars(self):
            raise ConfigError(
                "a top-level `optimizer:` section overrides lr, scheduler and lr_overrides of the model section",
                fix="write optimizer, lr and scheduler under model.init_args",
            )
        for callback in self.trainer.callbacks:
            if isinstance(callback, SaveConfigCallback):
                given = vars(callback.config.trainer)
                raise_errors(check_limits({key: value for key, value in given.items() if isinstance(value, float)}))
        dtype = np.dtype(getattr(self.trainer, "out_dtype", "int16"))
        if stage == "predict" and self.hparams["output_on_inference"] != "prediction" and dtype.kind != "f":
            raise ConfigError(
                f"{self.hparams['output_on_inference']} written as {dtype} would all be 0",
                fix="add --out_dtype float32",
            )

    # --- the steps ---

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Seed dropout by seed, batch and process alone, so that a resumed training equals an uninterrupted one."""
        seed_step(self.trainer, self._seed)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of one batch.

        Raises:
            TrainingError: the loss is not a number; the message names the tiles.
        """
        loss, predicted = self._loss(batch, "train")
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} at step {self.global_step}, in the batch of the tiles "
                + ", ".join(batch["filename"]),
                fix="look at these chips and their masks; if they are correct, lower lr",
            )
        self.train_metrics.update(predicted, batch["mask"])
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss and scores of one batch."""
        _, predicted = self._loss(batch, "val")
        self.val_metrics.update(predicted, batch["mask"])
        if self._do_plot_samples(batch_idx):
            self.plot_sample({**batch, "prediction": predicted}, batch_idx)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss and scores of one batch."""
        _, predicted = self._loss(batch, "test")
        self.test_metrics[0].update(predicted, batch["mask"])

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> tuple[tuple[Tensor, str], list[str]]:
        """Predict one batch, as TerraTorch's writer expects: ((values, suffix of the file), paths of the images)."""

        def logits_of(image: Tensor) -> Tensor:
            height, width = image.shape[-2:]
            logits: Tensor = self(pad_to_stride(self.model, image)).output
            return logits[..., :height, :width]

        if self.tiled_inference_parameters:
            logits = tiled_inference(logits_of, batch["image"], **self.tiled_inference_parameters)
        else:
            logits = logits_of(batch["image"])
        output = self.hparams["output_on_inference"]
        values = {"prediction": lambda: logits.argmax(1), "probabilities": lambda: logits.softmax(1)}
        values["logits"] = lambda: logits
        return (values[output](), "pred" if output == "prediction" else output), batch["filename"]

    def _loss(self, batch: dict[str, Any], split: str) -> tuple[Tensor, Tensor]:
        known = {"superpixels": batch["superpixels"]} if "superpixels" in batch else {}
        logits = self(batch["image"], **known).output
        share = batch["share"] if self.target == SHARE_TARGET else None
        loss: Tensor = self.criterion(logits, batch["mask"], share)["loss"]
        self.log(
            f"{split}/loss", loss, on_step=split == "train", on_epoch=True, prog_bar=split == "train", sync_dist=True,
            batch_size=len(logits),
        )  # fmt: skip
        return loss, logits.argmax(1)

    def on_train_epoch_end(self) -> None:
        """Log the scores of train."""
        # The progress bar of the first process has just asked for the loss, and waits for the sum over processes. The
        # others must join that sum first: if they summed the scores before, the processes would wait for each other.
        _ = self.trainer.callback_metrics
        self.log_dict(self.train_metrics.compute())
        self.train_metrics.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the scores of validation; the positive class's IoU also appears in the progress bar."""
        scores = self.val_metrics.compute()
        self.log("val/iou", scores.pop("val/iou"), prog_bar=True)
        self.log_dict(scores)
        self.val_metrics.reset()

    # --- weights and checkpoints ---

    def on_fit_start(self) -> None:
        """Check dataset and schedule, then load the backbone's weights, unless a checkpoint has brought all weights.

        Raises:
            ConfigError: the dataset's splits, labels or statistics, or the schedule, are wrong.
            WeightsError: see `load_weights`.
        """
        self._seed = torch.initial_seed()  # set by seed_everything
        findings = check_held(self.chips.dataset) + self._check_schedule()
        raise_errors(findings)
        for finding in findings:
            rank_zero_warn(str(finding))
        if not self._has_weights:
            self.weights_statement = load_weights(
                self.model, self.hparams["weights"], model_args=self.hparams["model_args"], bands=self.chips.bands
            )
        self._has_weights = True
        rank_zero_info(f"Weights: {self.weights_statement}")

    def _check_schedule(self) -> list[Finding]:
        epochs, steps = self.trainer.max_epochs, self.trainer.estimated_stepping_batches
        if epochs in (None, -1):
            epochs = math.ceil(steps / self.trainer.num_training_batches) if math.isfinite(steps) else None
        scheduler, options = self.hparams["scheduler"], self.hparams["scheduler_hparams"] or {}
        return [
            *check_schedule(scheduler, options, epochs=epochs, steps=steps),
            *check_resumed_schedule(self._stored_schedules, scheduler, options, steps=steps),
        ]

    def on_validation_start(self) -> None:
        """Raise an error if the weights are random.

        Raises:
            CheckpointError: no checkpoint was loaded, and no training has begun.
        """
        if not self._has_weights:
            raise CheckpointError(
                f"`{self.trainer.state.fn.value}` without a checkpoint would use random weights",
                fix="add --ckpt_path outputs/<experiment>/checkpoints/best.ckpt",
            )

    on_test_start = on_predict_start = on_validation_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the training instead of the hyperparameters, with which Lightning would override the config."""
        checkpoint.pop("hyper_parameters", None)
        checkpoint[RECORD] = {**self._record(), "weights_statement": self.weights_statement}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise an error if the checkpoint has another model or other data.

        Raises:
            CheckpointError: it names the difference.
        """
        self.weights_statement = check_record(checkpoint, self._record(), where=self.trainer.ckpt_path)
        self._stored_schedules = checkpoint.get("lr_schedulers") or []

    def _record(self) -> dict[str, Any]:
        model = {key: self.hparams[key] for key in ("model_factory", "model_args")}
        return record_of(self.chips, **model, target=self.target)
