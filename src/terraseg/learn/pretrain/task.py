"""The task of a pretraining, and the encoder that it leaves."""

# ruff: noqa: ARG002  # Lightning defines the signatures

import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from terratorch.registry import BACKBONE_REGISTRY
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from terraseg.errors import ConfigError, TrainingError
from terraseg.learn.models import build  # noqa: F401  # registers our backbones
from terraseg.learn.models.backbones.base import Backbone
from terraseg.learn.models.encoder_file import Pretraining, write_encoder
from terraseg.learn.pretrain.datamodule import SceneWindows
from terraseg.learn.pretrain.mae import MAE
from terraseg.learn.pretrain.simmim import SimMIM
from terraseg.learn.training.experiment_folder import keep_together
from terraseg.learn.training.make_bundle import RECORD, check_same
from terraseg.learn.training.resume import seed_step

ENCODER = "encoder.safetensors"
"""The pretrained weights, in ``trainer.default_root_dir``."""

_TIMM = "timm_"


class PretrainTask(LightningModule):
    """Masked images: a part of each chip is hidden, and the model predicts it from the rest.

    The rate rises over the first steps and then falls as a cosine to 0. Masks and dropout depend on the seed, the step
    and the process alone.

    Args:
        method: ``mae`` for a ViT, ``simmim`` for a CNN.
        backbone: name as in ``model_args`` of an experiment: ``mae_vit_tiny``, ``timm_tf_efficientnet_lite0``, ...
        backbone_args: its arguments, such as ``patch_size``; without the bands.
        method_args: see `terraseg.learn.pretrain.mae.MAE` and `terraseg.learn.pretrain.simmim.SimMIM`.
        lr: highest learning rate, of AdamW.
        weight_decay: not of biases and norms.
        warmup_steps: over which the rate rises.
        matmul_precision: of float32 products; importing TerraTorch lowers it to ``medium`` for the whole process.
    """

    model: nn.Module

    def __init__(
        self,
        method: Literal["mae", "simmim"],
        backbone: str,
        backbone_args: dict[str, Any] | None = None,
        method_args: dict[str, Any] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        warmup_steps: int = 50,
        matmul_precision: Literal["highest", "high", "medium"] = "highest",
    ) -> None:
        super().__init__()
        self.method, self.backbone = method, backbone
        self.backbone_args, self.method_args = backbone_args or {}, method_args or {}
        self.lr, self.weight_decay, self.warmup_steps = lr, weight_decay, warmup_steps
        self.matmul_precision = matmul_precision
        self.ended = False
        """Whether a pretraining has run to its end."""

    def configure_callbacks(self) -> list[Callback]:
        """None of its own. This is the first hook of a run: nothing has been written yet."""
        keep_together(self.trainer)
        return []

    @property
    def windows(self) -> SceneWindows:
        """The datamodule."""
        data: SceneWindows = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def configure_model(self) -> None:
        """Build the model for the bands of the data; Lightning asks again when it loads a checkpoint."""
        if not hasattr(self, "model"):
            torch.set_float32_matmul_precision(self.matmul_precision)
            self.model = self.build(self.windows)

    def build(self, data: SceneWindows) -> nn.Module:
        """The model with random weights.

        Args:
            data: after its setup.

        Raises:
            ConfigError: backbone, method and chips don't fit together.
        """
        bands = data.bands
        of_bands = {"in_chans": len(bands)} if self.backbone.startswith(_TIMM) else {"bands": list(bands)}
        try:
            encoder = BACKBONE_REGISTRY.build(self.backbone, pretrained=False, **of_bands, **self.backbone_args)
            if isinstance(encoder, Backbone):
                encoder.set_statistics(means=data.means, stds=data.stds)
            channels = {"bands": len(bands)} if self.method == "simmim" else {}
            method = {"mae": MAE, "simmim": SimMIM}[self.method]
            model: MAE | SimMIM = method(encoder, **channels, **self.method_args)
        except ConfigError:
            raise
        except Exception as error:
            reason = " ".join(map(str, error.args)) or type(error).__name__  # str(KeyError) would add quotes
            raise ConfigError(
                f"the model can't be built: {reason}", fix="correct model.backbone, backbone_args or method_args"
            ) from error
        if data.chip_size % model.multiple:
            raise ConfigError(
                f"chip_size is {data.chip_size}",
                expected=f"a multiple of {model.multiple}, the patch of {self.backbone}",
                fix="correct data.chip_size" + ", or backbone_args.patch_size" * (self.method == "mae"),
            )
        return model

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with the betas of the papers; linear warm-up, then a cosine."""
        matrices, vectors = (
            [each for each in self.model.parameters() if (each.ndim > 1) is of_matrices]
            for of_matrices in (True, False)
        )
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95))
        steps, warm = self.trainer.max_steps, self.warmup_steps

        def rate(step: int) -> float:
            if step < warm:
                return (step + 1) / (warm + 1)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, rate), "interval": "step"}}

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Seed masks and dropout, so that a resumed pretraining equals an uninterrupted one."""
        seed_step(self.trainer, self.windows.seed)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch.

        Raises:
            TrainingError: the loss is not a number.
        """
        loss: Tensor = self.model(batch["image"], batch["valid"])
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss became {loss.item()} at step {self.global_step}", fix="lower model.lr")
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def on_train_end(self) -> None:
        """Write the encoder."""
        self.ended = True
        if not self.trainer.is_global_zero:
            return
        data, path = self.windows, Path(self.trainer.default_root_dir) / ENCODER
        pretraining = Pretraining(
            method=self.method, backbone=self.backbone, backbone_args=self.backbone_args, bands=data.bands,
            means=tuple(map(float, data.means)), stds=tuple(map(float, data.stds)), chip_size=data.chip_size,
            batch_size=data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches,
            steps=self.global_step, seed=data.seed, scenes=data.names, attribution=data.attribution,
        )  # fmt: skip
        write_encoder(path, self.model.get_submodule("encoder"), pretraining)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record what a resumed pretraining must share."""
        checkpoint[RECORD] = self._record()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise an error if the checkpoint has another model or other scenes.

        Raises:
            CheckpointError: it names the difference.
        """
        there = checkpoint.get(RECORD) or {}
        check_same(there, self._record(), where=self.trainer.ckpt_path, trained="pretrained", data="scenes")

    def _record(self) -> dict[str, Any]:
        data = self.windows
        record = {
            "method": self.method, "method_args": self.method_args, "backbone": self.backbone,
            "backbone_args": self.backbone_args, "bands": data.bands, "scenes": data.names,
            "chip_size": data.chip_size, "batch_size": data.batch_size, "seed": data.seed,
            "lr": self.lr, "weight_decay": self.weight_decay, "warmup_steps": self.warmup_steps,
            "max_steps": self.trainer.max_steps, "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
            "means": [float(value) for value in data.means], "stds": [float(value) for value in data.stds],
        }  # fmt: skip
        plain: dict[str, Any] = json.loads(json.dumps(record))
        return plain
