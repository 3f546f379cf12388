"""Bundles: what is written is read, also by and from other versions; anything else is an error before it is used."""

import json
from pathlib import Path

import numpy as np
import pytest

from terraseg.contracts.bundle import BundleInfo, open_bundle, write_bundle
from terraseg.contracts.imagery.processing import Processing
from terraseg.errors import CheckpointError

_WEIGHTS = {
    "norm.num_batches_tracked": np.array(5),
    "decoder.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
}
_INFO = BundleInfo(
    experiment="tiny", model_factory="EncoderDecoderFactory", model_args={"num_classes": 2}, bands=("B03", "B04"),
    unit="reflectance_1e-4", nodata=0, means=(1.0, 2.0), stds=(3.0, 4.0), classes={0: "background", 1: "building"},
    positive_class=1, threshold=0.4, slope=0.8, intercept=-1.5, tile_size=32, gsd=10, weights="random",
    dataset_hash="d", licence="Apache-2.0", attribution="tests", versions={"torch": "2.9.0"},
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", info=_INFO, weights=_WEIGHTS, config="lr: 1\n").root


def test_what_was_written_is_read(root: Path) -> None:
    info = open_bundle(root).info
    assert info.model_copy(update={"weights_hash": "", "config_hash": ""}) == _INFO
    assert sorted(path.name for path in root.iterdir()) == ["bundle.json", "config.yaml", "weights.safetensors"]


def test_weights_have_the_bytes_that_torch_writes(root: Path) -> None:
    """The hash is of ``safetensors.torch.save_file`` of the same tensors, with which bundles were written before."""
    written_by_torch = "e5e8942761a076fd0ca7bfbcc4f6db4abcaeb9c21dbe9bacd172824e56a0ccdf"
    assert open_bundle(root).info.weights_hash == written_by_torch


def test_a_bundle_older_than_several_dates_has_one_frame(root: Path) -> None:
    content = json.loads((root / "bundle.json").read_text())
    del content["frames"]
    (root / "bundle.json").write_text(json.dumps(content))
    assert open_bundle(root).info.frames == 1


def test_a_bundle_standardised_by_train_is_written_as_before(root: Path) -> None:
    """Its metadata are part of the fingerprint of its maps, which stay finished."""
    assert not {"by_scene", "target", "share_intervals"} & json.loads((root / "bundle.json").read_text()).keys()
    by_scene = _INFO.model_copy(update={"by_scene": True})
    written = write_bundle(root, info=by_scene, weights=_WEIGHTS, config="")
    assert open_bundle(written.root).info.by_scene
    assert by_scene.model_dump()["by_scene"]


def test_of_an_older_bundle_it_is_unknown_how_its_scenes_were_made(root: Path) -> None:
    content = json.loads((root / "bundle.json").read_text())
    del content["processing"]
    (root / "bundle.json").write_text(json.dumps(content))
    assert open_bundle(root).info.processing == Processing()


def test_a_bundle_with_a_temperature_has_its_inverse_as_slope(root: Path) -> None:
    content = json.loads((root / "bundle.json").read_text())
    del content["slope"], content["intercept"]
    (root / "bundle.json").write_text(json.dumps({**content, "temperature": 0.5946035385131836}))
    info = open_bundle(root).info
    assert (1 / info.slope, info.intercept) == (0.5946035385131836, 0)
    (root / "bundle.json").write_text(json.dumps({**content, "temperature": 0}))
    with pytest.raises(CheckpointError, match="temperature is 0"):
        open_bundle(root)


def test_writing_again_replaces_the_bundle_in_one_step(root: Path) -> None:
    write_bundle(root, info=_INFO.model_copy(update={"threshold": 0.9}), weights=_WEIGHTS, config="")
    assert open_bundle(root).info.threshold == 0.9
    assert [path.name for path in root.parent.iterdir()] == ["bundle"]


def test_a_missing_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere .*bundle\.json"):
        open_bundle(tmp_path / "nowhere")


def test_the_format_is_checked_before_anything_else(root: Path) -> None:
    (root / "bundle.json").write_text(json.dumps({"format": 7, "something": "else"}))
    with pytest.raises(CheckpointError, match="format 7; expected format 1"):
        open_bundle(root)


def test_every_fault_of_the_metadata_is_named(root: Path) -> None:
    content = json.loads((root / "bundle.json").read_text())
    (root / "bundle.json").write_text(json.dumps({**content, "quantised": True, "gsd": "ten"}))
    with pytest.raises(CheckpointError, match=r"bundle\.json .*gsd: .*; quantised: unknown key"):
        open_bundle(root)


def test_metadata_that_is_not_text_is_an_error(root: Path) -> None:
    (root / "bundle.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"bundle\.json"):
        open_bundle(root)


def test_changed_weights_are_an_error(root: Path) -> None:
    with open(root / "weights.safetensors", "r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"\x7f")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        open_bundle(root)
