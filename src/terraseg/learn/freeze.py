"""Train the decoder first: the backbone is frozen for some epochs, then everything is trained."""

import math

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from terraseg.errors import ConfigError
from terraseg.learn.models.build import encoder_of
from terraseg.learn.task import SegmentationTask


class FreezeBackbone(Callback):
    """Freeze the backbone for the first epochs: the gradients of a new decoder would spoil its pretrained weights.

    A frozen backbone has no gradients and runs in eval mode: its batch norm statistics do not change, and neither
    dropout nor drop path affects its features. Unfreezing restores each parameter and module to its earlier state, so
    base weights below LoRA stay frozen.

    * Resume: the epoch alone decides what is frozen, whenever the checkpoint was made.
    * Optimizer and schedule continue unchanged. The backbone's parameters are in their groups from the start, without
      gradients and therefore without decay or momentum. Use the task's ``lr_overrides`` to give them a lower rate.
    * DDP synchronises the parameters that had a gradient when it wrapped the model. So it wraps the whole model, the
      freezing comes afterwards, and DDP must accept parameters without a gradient.

    Args:
        epochs: how many epochs to keep it frozen.

    Raises:
        ConfigError: fewer than one epoch, `freeze_backbone` is set too, early stopping may end the training before the
            unfreezing, or the strategy would not synchronise the unfrozen parameters.
    """

    def __init__(self, epochs: int) -> None:
        if epochs < 1:
            raise ConfigError(
                f"FreezeBackbone has epochs {epochs}", expected="1 or more", fix="set epochs, or remove it"
            )
        self.epochs = epochs
        self._frozen: list[nn.Parameter] = []
        self._resting: list[nn.Module] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Check the config."""
        if not isinstance(pl_module, SegmentationTask):
            raise ConfigError(f"the model is {type(pl_module).__name__}", expected="a SegmentationTask of terraseg")
        if pl_module.hparams["freeze_backbone"]:
            raise ConfigError(
                f"freeze_backbone keeps the backbone frozen, FreezeBackbone would unfreeze it at epoch {self.epochs}",
                fix="remove one of them",
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the strategy, and freeze: a training that resumes in the middle of an epoch has no epoch start."""
        self._check_strategy(trainer)
        self._check_stopping(trainer)
        if trainer.max_epochs is not None and 0 < trainer.max_epochs <= self.epochs:
            rank_zero_warn(f"The backbone stays frozen: the training ends before epoch {self.epochs}.")
        self._apply(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze, keep frozen, or unfreeze."""
        self._apply(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Restore the model, also if the training ended early."""
        self._unfreeze()

    def _apply(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch >= self.epochs:
            if self._frozen:
                self._unfreeze()
                rank_zero_info(f"Backbone unfrozen at epoch {trainer.current_epoch}.")
            return
        backbone = encoder_of(pl_module.get_submodule("model"))
        self._frozen += [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        self._resting += [module for module in backbone.modules() if module.training]
        backbone.requires_grad_(False)
        backbone.eval()

    def _unfreeze(self) -> None:
        for parameter in self._frozen:
            parameter.requires_grad = True
        for module in self._resting:
            module.training = True  # train() would reach down to modules that were in eval mode before
        self._frozen, self._resting = [], []

    def _check_strategy(self, trainer: Trainer) -> None:
        wrapped = trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            right = wrapped.find_unused_parameters and not wrapped.static_graph
        else:
            right = trainer.world_size == 1
        if not right:
            raise ConfigError(
                f"FreezeBackbone with strategy {type(trainer.strategy).__name__}: the unfrozen backbone would differ "
                "between processes",
                fix="set trainer.strategy: ddp_find_unused_parameters_true",
            )

    def _check_stopping(self, trainer: Trainer) -> None:
        if trainer.val_check_batch is None:  # validation by time
            return
        per_epoch = trainer.num_training_batches / trainer.val_check_batch / (trainer.check_val_every_n_epoch or 1)
        validations = math.floor(self.epochs * per_epoch)
        for stopper in trainer.early_stopping_callbacks:
            if stopper.patience < validations:
                raise ConfigError(
                    f"EarlyStopping with patience {stopper.patience} may end the training while the backbone is frozen",
                    expected=f"patience of {validations} validations or more",
                )
