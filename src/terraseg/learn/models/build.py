"""Build an experiment's model from its YAML section with TerraTorch's factories, always with random weights."""

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
from peft import PeftModel
from terratorch.registry import MODEL_FACTORY_REGISTRY
from torch import Tensor, nn
from torch.nn import functional

from terraseg.contracts.bundle import DATE_FUSION
from terraseg.core.bands import band
from terraseg.errors import ConfigError
from terraseg.learn.models import backbones, necks  # noqa: F401  # necks register themselves
from terraseg.learn.models.backbones.base import Backbone
from terraseg.learn.models.date_fusion import DateFusion, fuse_dates
from terraseg.learn.models.graph.graphsage import GraphSage
from terraseg.learn.models.graph.superpixels import SuperpixelRule
from terraseg.learn.models.specs import SPECS

backbones.import_all()

_PRETRAINED_KEY = {"EncoderDecoderFactory": "backbone_pretrained", "SMPModelFactory": "pretrained"}
"""The factories of segmentation models, each with the argument that `weights` replaces."""


def build_model(model_factory: str, model_args: Mapping[str, Any]) -> nn.Module:
    """Build the architecture with random weights.

    Args:
        model_factory: ``EncoderDecoderFactory`` or ``SMPModelFactory``.
        model_args: the factory's arguments, as in TerraTorch's documentation; and ``date_fusion``, a name in
            `terraseg.learn.models.date_fusion.FUSIONS`, to give a backbone of one date several.

    Returns:
        A module from (B, C, H, W) to TerraTorch's ``ModelOutput``, whose ``output`` is (B, classes, H, W) logits; with
        ``date_fusion`` also from (B, C, T, H, W), of any number of dates.

    Raises:
        ConfigError: unknown factory, or the factory rejects its arguments (the message quotes it).
    """
    if model_factory not in _PRETRAINED_KEY:
        raise ConfigError(f"model_factory is {model_factory!r}", expected=" or ".join(_PRETRAINED_KEY))
    key = _PRETRAINED_KEY[model_factory]
    if key in model_args:
        raise ConfigError(f"model_args has {key}", fix="remove it; the task's `weights` sets the source of the weights")
    arguments = {**deepcopy(dict(model_args)), key: False}  # the factories change their arguments
    fusion = arguments.pop(DATE_FUSION, None)
    try:
        with warnings.catch_warnings():  # `load_weights` comes later, and warns of frozen random weights
            warnings.filterwarnings("ignore", message="You are using PEFT without a pretrained backbone")
            model: nn.Module = MODEL_FACTORY_REGISTRY.build(model_factory).build_model(
                "segmentation", aux_decoders=None, **arguments
            )
    except Exception as error:
        reason = " ".join(map(str, error.args)) or type(error).__name__  # str(KeyError) would add quotes
        raise ConfigError(
            f"the model can't be built: {reason}", fix="correct model_args, see the model's page in TerraTorch's docs"
        ) from error
    if fusion is not None:
        if isinstance(backbone_of(model), GraphSage):
            raise ConfigError(f"{DATE_FUSION} with {model_args.get('backbone')}, whose superpixels are of one date")
        fuse_dates(model, _inner(model), str(fusion))
    return model


def encoder_of(model: nn.Module) -> nn.Module:
    """The backbone of a model of either factory, with its adapters if `peft_config` adds some."""
    encoder = _inner(model).get_submodule("encoder")
    return encoder.encoder if isinstance(encoder, DateFusion) else encoder


def is_adapted(model: nn.Module) -> bool:
    """Whether the backbone is frozen and adapters in it are trained (LoRA, by `peft_config`)."""
    return isinstance(encoder_of(model), PeftModel)


def backbone_of(model: nn.Module) -> nn.Module:
    """The backbone of a model of either factory, without the wrapper of its adapters."""
    encoder = encoder_of(model)
    return encoder.get_base_model() if isinstance(encoder, PeftModel) else encoder


def decoder_of(model: nn.Module) -> nn.Module:
    """The decoder of a model of either factory, without the head."""
    return _inner(model).get_submodule("decoder")


def is_smp(model: nn.Module) -> bool:
    """Whether a model comes from ``SMPModelFactory``."""
    return hasattr(model, "smp_model")


def _inner(model: nn.Module) -> nn.Module:
    return model.get_submodule("smp_model") if is_smp(model) else model


def pad_to_stride(model: nn.Module, image: Tensor) -> Tensor:
    """Repeat the last rows and columns up to a size that the model takes.

    Models of ``SMPModelFactory`` take only multiples of their stride; TerraTorch's own models pad by themselves.

    Args:
        image: (B, C, H, W) of any size; with several dates (B, C, T, H, W), which only TerraTorch's own models take.
    """
    encoder: Any = encoder_of(model)
    stride = int(encoder.output_stride) if is_smp(model) else 1
    height, width = image.shape[-2:]
    lower, right = -height % stride, -width % stride
    return functional.pad(image, (0, right, 0, lower), mode="replicate") if lower or right else image


def set_statistics(model: nn.Module, *, means: npt.NDArray[np.float32], stds: npt.NDArray[np.float32]) -> None:
    """Pass the input's statistics to a backbone that applies the constants of its pretraining; ignored by others.

    Args:
        means: of each band, in DN.
        stds: of each band, in DN.
    """
    if isinstance(encoder := backbone_of(model), Backbone):
        encoder.set_statistics(means=means, stds=stds)


def superpixel_rule(model: nn.Module) -> SuperpixelRule | None:
    """How the model divides an image into superpixels, if it does: the datamodule can do it once per chip."""
    encoder = backbone_of(model)
    return encoder.superpixels if isinstance(encoder, GraphSage) else None


def check_inputs(
    model_args: Mapping[str, Any], *, bands: Sequence[str], classes: Sequence[str], frames: int = 1
) -> None:
    """Check that the model is declared for exactly the bands, dates and classes of the data, in their order.

    Without this check, TerraTorch would train on the first six of seven bands. The bands are also compared with those
    of the pretraining, see `terraseg.learn.models.specs.BackboneSpec.check_bands`.

    Raises:
        ConfigError: they differ, the model doesn't declare its bands, or it can't take them.
    """
    declared = _declared_bands(model_args)
    given = [band(name).name for name in bands]
    wanted = [band(str(name)).name for name in declared] if isinstance(declared, Sequence) else declared
    if wanted not in (given, len(given)):
        named = ", ".join(wanted) if isinstance(wanted, list) else f"{wanted} channels"
        raise ConfigError(
            f"the data has the bands {', '.join(given)}, the model is declared for {named}",
            fix="make data.init_args.bands and the bands in model_args the same, in the same order",
        )
    if (spec := SPECS.get(str(model_args.get("backbone")))) is not None:
        spec.check_bands(given)
    if model_args.get("num_classes") != len(classes):
        raise ConfigError(
            f"num_classes is {model_args.get('num_classes')}", expected=f"{len(classes)} ({', '.join(classes)})"
        )
    _check_frames(model_args, frames)


def _check_frames(model_args: Mapping[str, Any], frames: int) -> None:
    spec = SPECS.get(str(model_args.get("backbone")))
    if DATE_FUSION in model_args:  # the backbone itself gets one date at a time
        frames = 1
    if frames > 1 and spec is not None and spec.frames is None:
        able = ", ".join(name for name, known in SPECS.items() if known.frames is not None)
        raise ConfigError(
            f"{spec.name} takes one date, the data has {frames} of each place",
            expected=f"one of {able}, or {DATE_FUSION}",
            fix=f"add {DATE_FUSION}: mean_max to model_args: the backbone encodes each date, and their maps are fused",
        )
    declared = model_args.get("backbone_num_frames", 1)
    if declared != frames:
        raise ConfigError(
            f"a chip has {frames} date{'s' * (frames > 1)} of its place, backbone_num_frames is {declared}",
            fix="set it to prepare.frames of the dataset",
        )
    for neck in model_args.get("necks") or ():
        if neck.get("name") == "ReshapeTokensToImage" and (held := neck.get("effective_time_dim", 1)) != frames:
            raise ConfigError(f"the neck ReshapeTokensToImage has effective_time_dim {held}", expected=f"{frames}")


def _declared_bands(model_args: Mapping[str, Any]) -> Sequence[str] | int:
    for key in ("backbone_bands", "bands"):
        if (value := model_args.get(key)) is not None:
            if not isinstance(value, Mapping):
                return list(value)
            if len(value) == 1:  # TerraMind names the bands of each modality
                return list(next(iter(value.values())))
            raise ConfigError(f"{key} has {len(value)} modalities", expected="one")
    for key in ("backbone_in_chans", "in_channels"):
        if key in model_args:
            return int(model_args[key])
    raise ConfigError("model_args doesn't name the model's bands", fix="add backbone_bands or backbone_in_chans")
