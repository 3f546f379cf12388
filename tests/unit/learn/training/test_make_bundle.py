import json
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
    positive_class=1, threshold=0.4, temperature=1.5, tile_size=32, gsd=10, weights="random", dataset_hash="d",
    licence="Apache-2.0", attribution="tests", versions={"torch": torch.__version__},
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model("EncoderDecoderFactory", _MODEL_ARGS)
    model(torch.randn(2, 2, 64, 64))  # batch norm statistics that are not the initial ones
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


def test_what_was_written_is_read(root: Path) -> None:
    info = open_bundle(root).info
    assert info.model_copy(update={"weights_hash": "", "config_hash": ""}) == _INFO
    assert sorted(path.name for path in root.iterdir()) == ["bundle.json", "config.yaml", "weights.safetensors"]


def test_writing_again_replaces_the_bundle_in_one_step(root: Path, model: torch.nn.Module) -> None:
    write_bundle(root, info=_INFO.model_copy(update={"threshold": 0.9}), weights=weights_of(model), config="")
    assert open_bundle(root).info.threshold == 0.9
    assert [path.name for path in root.parent.iterdir()] == ["bundle"]


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.*bundle\.json is missing"):
        open_bundle(tmp_path / "nowhere")


def test_another_format_is_refused_before_anything_else_is_read(root: Path) -> None:
    (root / "bundle.json").write_text(json.dumps({"format": 7, "something": "else"}))
    with pytest.raises(CheckpointError, match="has format 7; expected format 1"):
        open_bundle(root)


def test_a_foreign_bundle_is_refused(root: Path) -> None:
    content = json.loads((root / "bundle.json").read_text())
    (root / "bundle.json").write_text(json.dumps({**content, "quantised": True}))
    with pytest.raises(CheckpointError, match="quantised"):
        open_bundle(root)


def test_a_head_that_is_no_text_is_refused(root: Path) -> None:
    (root / "bundle.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"bundle\.json can't be read"):
        open_bundle(root)


def test_changed_weights_are_refused(root: Path) -> None:
    with open(root / "weights.safetensors", "r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"\x7f")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        open_bundle(root)


def test_weights_of_another_architecture_are_refused(tmp_path: Path, model: torch.nn.Module) -> None:
    other = _INFO.model_copy(update={"model_args": {**_MODEL_ARGS, "decoder_channels": [16] * 5}})
    bundle = write_bundle(tmp_path / "bundle", info=other, weights=weights_of(model), config="")
    with pytest.raises(CheckpointError, match="architecture"):
        load_model(bundle)
