"""A model loaded from a bundle gives bit-equal logits."""

from pathlib import Path

import pytest
import torch

from terraseg.contracts.bundle import BundleInfo, open_bundle, write_bundle
from terraseg.errors import CheckpointError
from terraseg.learn.models.build import build_model
from terraseg.learn.models.load import load_model, weights_of

_MODEL_ARGS = {
    "backbone": "timm_tf_efficientnet_lite0",
    "backbone_in_chans": 2,
    "decoder": "UNetDecoder",
    "decoder_channels": [8, 8, 8, 8, 8],
    "num_classes": 2,
}
_INFO = BundleInfo(
    experiment="tiny", model_factory="EncoderDecoderFactory", model_args=_MODEL_ARGS, bands=("B03", "B04"),
    unit="reflectance_1e-4", nodata=0, means=(1.0, 2.0), stds=(3.0, 4.0), classes={0: "background", 1: "building"},
    positive_class=1, threshold=0.4, tile_size=32, gsd=10, weights="random", dataset_hash="d",
    licence="Apache-2.0", attribution="tests", versions={"torch": torch.__version__},
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model("EncoderDecoderFactory", _MODEL_ARGS)
    model(torch.randn(2, 2, 64, 64))  # batch norm statistics other than the initial ones
    return model.eval()


@pytest.fixture
def root(tmp_path: Path, model: torch.nn.Module) -> Path:
    return write_bundle(tmp_path / "bundle", info=_INFO, weights=weights_of(model), config="lr: 1\n").root


def test_the_loaded_model_gives_bit_equal_logits(root: Path, model: torch.nn.Module) -> None:
    image = torch.randn(2, 2, 64, 96)
    loaded = load_model(open_bundle(root))
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(loaded(image), model(image).output)


def test_weights_of_another_architecture_raise_an_error(tmp_path: Path, model: torch.nn.Module) -> None:
    other = _INFO.model_copy(update={"model_args": {**_MODEL_ARGS, "decoder_channels": [16] * 5}})
    bundle = write_bundle(tmp_path / "bundle", info=other, weights=weights_of(model), config="")
    with pytest.raises(CheckpointError, match="load into the architecture"):
        load_model(bundle)
