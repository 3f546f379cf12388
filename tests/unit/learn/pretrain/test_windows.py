from pathlib import Path

import numpy as np
import pytest
import rasterio

from helpers.factories import make_scene
from terraseg.contracts.scene import Scene, open_scene
from terraseg.errors import ConfigError, SceneError
from terraseg.learn.pretrain.datamodule import SceneWindows, Windows
from terraseg.learn.pretrain.regions import find_regions

_BANDS = ["B02", "B03"]


def _scene(
    folder: Path, size: tuple[int, int], *, name: str = "scene", bands: tuple[str, ...] = ("B02", "B03")
) -> Scene:
    """A scene whose B02 is the row and whose B03 is the column of a pixel, both plus 1; other bands are noise."""
    scene = make_scene(folder, size, bands, name=name)
    rows, columns = np.indices(size) + 1
    with rasterio.open(scene.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
        target.write(rows.astype(np.uint16), 1 + bands.index("B02"))
        target.write(columns.astype(np.uint16), 1 + bands.index("B03"))
    return open_scene(scene.path)


def _spoil(scene: Scene, where: tuple[slice, slice]) -> None:
    with rasterio.open(scene.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
        pixels = target.read()
        pixels[:, *where] = 0
        target.write(pixels)


def _data(folder: Path, **options: object) -> SceneWindows:
    data = SceneWindows([str(folder)], **{"bands": _BANDS, "chip_size": 32, "batch_size": 12, **options})  # type: ignore[arg-type]
    data.setup("fit")
    return data


def test_chips_are_windows_of_the_scenes_by_band_name(tmp_path: Path) -> None:
    _scene(tmp_path, (700, 600))
    _scene(tmp_path, (90, 40), name="small", bands=("B03", "B8A", "B02"))
    data = _data(tmp_path)
    windows = Windows(data, rank=0)
    seen = set()
    for step in range(30):
        batch = windows[step]
        assert batch["image"].shape == (12, 2, 32, 32)
        assert bool(batch["valid"].all())
        dn = batch["image"].numpy() * data.stds[:, None, None] + data.means[:, None, None]
        for rows, columns in dn.round().astype(int):
            corner = rows.min(), columns.min()
            expected = np.indices((32, 32)) + np.array(corner)[:, None, None]
            assert {tuple(pixel) for pixel in np.stack([rows, columns]).reshape(2, -1).T} == {
                tuple(pixel) for pixel in expected.reshape(2, -1).T
            }
            seen.add(corner)
    assert max(row for row, _ in seen) > 512, "the region that was moved back into the scene"


def test_the_statistics_are_those_of_the_valid_pixels(tmp_path: Path) -> None:
    _spoil(_scene(tmp_path, (300, 200)), np.s_[:150, :])
    data = _data(tmp_path)
    rows, columns = np.arange(151, 301), np.arange(1, 201)
    np.testing.assert_allclose(data.means, [rows.mean(), columns.mean()], rtol=1e-6)
    np.testing.assert_allclose(data.stds, [rows.std(), columns.std()], rtol=1e-6)


def test_pixels_without_observation_are_named_and_become_the_mean(tmp_path: Path) -> None:
    _spoil(_scene(tmp_path, (600, 560)), np.s_[:, 20:])
    data = _data(tmp_path)
    windows = Windows(data, rank=0)
    batches = [windows[step] for step in range(20)]
    shares = np.concatenate([batch["valid"].float().mean((1, 2)).numpy() for batch in batches])
    assert 0.4 < shares.mean() < 0.63, "20 of 32 columns at most"
    for batch in batches:
        assert float(batch["image"].movedim(1, -1)[~batch["valid"]].abs().max()) == 0


def test_the_batches_do_not_depend_on_what_was_read_before(tmp_path: Path) -> None:
    _scene(tmp_path, (700, 600))
    data = _data(tmp_path)
    once, again = Windows(data, rank=0), Windows(data, rank=0)
    ahead = [once[step]["image"] for step in range(12)]
    for step in reversed(range(12)):
        assert bool((again[step]["image"] == ahead[step]).all())
    assert not bool((Windows(data, rank=1)[0]["image"] == ahead[0]).all())


def test_scenes_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    scene = _scene(tmp_path / "a", (100, 80))
    with pytest.raises(SceneError, match=r"a/scene.tif has no band B11"):
        _data(tmp_path / "a", bands=["B02", "B11"])
    with pytest.raises(ConfigError, match=r"100 x 80 px.*chip_size is 96"):
        _data(tmp_path / "a", chip_size=96)
    with pytest.raises(SceneError, match="no scene"):
        _data(tmp_path)
    _spoil(scene, np.s_[:, :])
    with pytest.raises(SceneError, match=r"no valid pixel in .*a \(scene.tif\)"):
        _data(tmp_path / "a")
    _scene(tmp_path / "a", (100, 80), name="good")
    assert len(_data(tmp_path / "a").regions) == 1
    with pytest.raises(ConfigError, match="batch_size 0"):
        SceneWindows(["a"], batch_size=0)


def test_a_band_that_is_constant_is_named(tmp_path: Path) -> None:
    scene = _scene(tmp_path, (100, 80))
    with rasterio.open(scene.path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as target:
        target.write(np.full((100, 80), 7, np.uint16), 2)
    with pytest.raises(SceneError, match="B03 is constant"):
        _data(tmp_path)


def test_regions_tile_a_scene_and_weigh_their_observations(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, (1100, 1500), _BANDS)
    _spoil(scene, np.s_[:512, :512])
    regions = find_regions([scene], bands=_BANDS, chip_size=64)
    covered = np.zeros((1100, 1500), bool)
    empty, *regions = regions
    assert empty.valid < 0.01 * 512**2, "the preview may show its border as valid"
    for region in regions:
        covered[region.window.toslices()] = True
        assert region.read().shape == (2, 512, 512)
        assert region.valid == pytest.approx(512**2, rel=0.1)
    assert covered[512:].all()
    assert covered[:, 512:].all()
    assert len(regions) == 8
