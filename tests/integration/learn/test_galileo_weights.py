"""The published Galileo-nano on a real scene: what its frozen features know of settlements."""

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import torch
from rasterio.features import rasterize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from terraseg.learn.models.backbones.galileo import BANDS as GALILEO_BANDS
from terraseg.learn.models.backbones.galileo import MEANS as GALILEO_MEANS
from terraseg.learn.models.backbones.galileo import STDS as GALILEO_STDS
from terraseg.learn.models.build import build_model, encoder_of
from terraseg.learn.models.weights import load_weights

_ARGUMENTS = {
    "backbone": "galileo_nano",
    "backbone_bands": list(GALILEO_BANDS),
    "backbone_months": [2],  # that of the scene
    "necks": [{"name": "SelectIndices", "indices": [3]}],
    "decoder": "FCNDecoder",
    "decoder_channels": 8,
    "num_classes": 2,
}
_WINDOW, _PATCH = 48, 4


def _galileo(weights: str) -> nn.Module:
    torch.manual_seed(0)
    model = build_model("EncoderDecoderFactory", _ARGUMENTS).eval()
    load_weights(model, weights, model_args=_ARGUMENTS, bands=GALILEO_BANDS)
    return encoder_of(model)


def _windows(shared_data: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Every second 48 px window of the scene, as on a chessboard.

    Returns:
        DN (N, 10, 48, 48); settlement (N, 12, 12) of each 4 px token; and which windows are test, the right third.
    """
    folder = shared_data / "brandenburg_s2l1c"
    with rasterio.open(next(folder.glob("*.tif"))) as source:
        places = [source.descriptions.index(name) + 1 for name in GALILEO_BANDS]
        pixels, transform, crs = source.read(places).astype(np.float32), source.transform, source.crs
    landuse = gpd.read_file(next(folder.glob("*.gpkg"))).to_crs(crs)
    settlements = landuse[landuse.fclass == "residential"].geometry
    mask = rasterize(settlements, pixels.shape[1:], transform=transform)
    rows, columns = mask.shape
    border = columns * 2 // 3  # a window on neither side of it is left out
    lefts = [*range(0, border - _WINDOW + 1, _WINDOW), *range(border, columns - _WINDOW + 1, _WINDOW)]
    corners = [(top, left) for i, top in enumerate(range(0, rows, _WINDOW)) for left in lefts[i % 2 :: 2]]
    image = [pixels[:, top : top + _WINDOW, left : left + _WINDOW] for top, left in corners]
    side = _WINDOW // _PATCH
    share = np.stack([mask[top : top + _WINDOW, left : left + _WINDOW] for top, left in corners])
    share = share.reshape(-1, side, _PATCH, side, _PATCH).mean((2, 4))
    return np.stack(image), share > 0.5, np.array([left >= border for _, left in corners])


def _probe(model: nn.Module, shared_data: Path) -> float:
    """Average precision on test of a logistic regression on the frozen features of train."""
    images, truth, test = _windows(shared_data)
    with torch.inference_mode():
        maps = [model(torch.from_numpy(part))[-1] for part in np.array_split(images, 16)]
    features = torch.cat(maps).permute(0, 2, 3, 1).numpy()
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(features[~test].reshape(-1, features.shape[-1]), truth[~test].ravel())
    scores = probe.decision_function(features[test].reshape(-1, features.shape[-1]))
    precision: float = average_precision_score(truth[test].ravel(), scores)
    return precision


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    torch.set_float32_matmul_precision("highest")  # importing TerraTorch lowers it


def test_the_real_encoder_fills_every_weight(shared_data: Path) -> None:
    path = shared_data / "galileo_nano" / "encoder.pt"
    published = torch.load(path, "cpu", weights_only=True)
    loaded, fresh = (_galileo(weights).state_dict() for weights in (str(path), "random"))
    # Ours are computed by the paper's formulas, the file's are what the authors trained with.
    torch.testing.assert_close(loaded.pop("pos_embed"), fresh.pop("pos_embed"), rtol=0, atol=2e-6)
    torch.testing.assert_close(loaded.pop("month_embed"), fresh.pop("month_embed"), rtol=0, atol=2e-6)
    trained = [key for key in loaded if not key.startswith("input_")]
    assert [key for key in trained if torch.equal(loaded[key], fresh[key])] == []
    for part in ("q", "k", "v"):
        place = "qkv".index(part)
        fused = loaded["blocks.3.attn.qkv.weight"].chunk(3)[place]
        assert torch.equal(fused, published[f"blocks.3.attn.{part}.weight"])


def test_the_constants_are_those_that_were_published(shared_data: Path) -> None:
    published = json.loads((shared_data / "galileo_nano" / "normalization.json").read_text())["13"]
    sentinel_2 = slice(2, 12)  # after the two of radar, before NDVI
    assert list(GALILEO_MEANS) == published["mean"][sentinel_2]
    assert list(GALILEO_STDS) == published["std"][sentinel_2]


def test_pretrained_features_know_settlements_and_random_ones_do_not(shared_data: Path) -> None:
    pretrained = _probe(_galileo(str(shared_data / "galileo_nano" / "encoder.pt")), shared_data)
    scratch = _probe(_galileo("random"), shared_data)
    assert pretrained >= 0.6
    assert scratch < 0.15
