"""Superpixels next to the packed copy: computed once, turned with the image, never stale, never corrupt."""

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.factories import make_dataset, make_scene, make_truth
from terraseg.contracts.dataset import open_dataset, write_dataset
from terraseg.errors import ConfigError, DatasetError
from terraseg.learn.datamodule import ChipDataModule
from terraseg.learn.models.graph import cache
from terraseg.learn.models.graph.superpixels import SuperpixelRule

_BANDS = ["B04", "B03", "B02"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    truth = make_truth((64, 256))
    make_dataset(tmp_path / "set", make_scene(tmp_path, (64, 256), truth=truth), truth, tile_size=32)
    return tmp_path / "set"


@pytest.fixture
def divided(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each image that is divided."""
    calls: list[int] = []
    divide = SuperpixelRule.divide

    def counted(self: SuperpixelRule, image: np.ndarray) -> np.ndarray:
        calls.append(1)
        return divide(self, image)

    monkeypatch.setattr(SuperpixelRule, "divide", counted)
    return calls


def _module(root: Path, rule: SuperpixelRule | None, bands: list[str] | None = None) -> ChipDataModule:
    module = ChipDataModule(str(root), bands=bands or _BANDS, batch_size=2)
    module.setup("fit")
    module.superpixels = rule
    return module


def _first(module: ChipDataModule) -> dict[str, torch.Tensor]:
    return next(iter(module.val_dataloader()))


def _files(root: Path) -> list[Path]:
    return sorted(root.glob(".pack/*/superpixels-*/val/superpixels.npy"))


def test_a_model_without_superpixels_gets_none(root: Path, divided: list[int]) -> None:
    assert "superpixels" not in _first(_module(root, None))
    assert not divided


def test_they_come_from_the_normalised_bands_and_are_computed_once(root: Path, divided: list[int]) -> None:
    rule = SuperpixelRule(pixels=16)
    batch = _first(_module(root, rule))
    chips = len(divided)
    assert chips == 2
    assert batch["superpixels"].dtype == torch.int64
    for image, labels in zip(batch["image"], batch["superpixels"], strict=True):
        np.testing.assert_array_equal(rule.divide(image.numpy()), labels)
    del divided[:]
    assert torch.equal(_first(_module(root, rule))["superpixels"], batch["superpixels"])
    assert not divided


def test_another_rule_and_other_bands_have_their_own(root: Path) -> None:
    first = _first(_module(root, SuperpixelRule(pixels=16)))["superpixels"]
    others = [
        _first(_module(root, SuperpixelRule(pixels=9)))["superpixels"],
        _first(_module(root, SuperpixelRule(pixels=16, compactness=0.1)))["superpixels"],
        _first(_module(root, SuperpixelRule(pixels=16), ["B11", "B12", "B8A"]))["superpixels"],
    ]
    assert len(_files(root)) == 4
    assert not any(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("turn", range(8))
def test_they_are_turned_with_the_image(root: Path, turn: int) -> None:
    module = _module(root, SuperpixelRule(pixels=16))
    module.train_dataloader()
    chips = module._chips["train"]
    plain, turned = chips.__getitems__([(1, 0)]), chips.__getitems__([(1, turn)])
    for key in ("image", "mask", "superpixels"):
        expected = torch.rot90(plain[key], turn % 4, (-2, -1))
        assert torch.equal(turned[key], expected.flip(-1) if turn >= 4 else expected), key


def test_a_corrupt_file_raises_an_error_with_the_folder_to_delete(root: Path) -> None:
    rule = SuperpixelRule(pixels=16)
    _module(root, rule).val_dataloader()
    (path,) = _files(root)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"{path} is corrupt; .*delete {path.parent.parent}"):
        _module(root, rule).val_dataloader()


def test_a_changed_dataset_removes_its_old_superpixels(root: Path) -> None:
    rule = SuperpixelRule(pixels=16)
    _module(root, rule).val_dataloader()
    (old,) = _files(root)
    dataset = open_dataset(root)
    tiles = dataset.tiles[dataset.tiles["tile"] != dataset.split("val")["tile"][0]]
    for kind in ("images", "masks", "coverage"):
        for path in (root / "val" / kind).glob(f"{dataset.split('val')['tile'][0]}.tif"):
            path.unlink()
    write_dataset(root, info=dataset.info, tiles=tiles, stats=dataset.stats, audit=dataset.audit)
    _module(root, rule).val_dataloader()
    assert not old.exists()
    assert len(_files(root)) == 1


def test_too_many_superpixels_raise_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MOST", 3)
    with pytest.raises(ConfigError, match="at most 3 per chip; .*segment_pixels"):
        _module(root, SuperpixelRule(pixels=16)).val_dataloader()
