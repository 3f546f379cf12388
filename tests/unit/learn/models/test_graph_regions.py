"""Superpixels and their graph, compared with counting by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from terraseg.errors import ConfigError
from terraseg.learn.models.graph.regions import SHAPE_FEATURES, region_graph
from terraseg.learn.models.graph.superpixels import SuperpixelRule

_PIXELS = 4


def _maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of 3 bands, 6 x 9 px, divided into 5 and 7 regions that need not be connected."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 3, 6, 9)).astype(np.float32)
    labels = np.stack([np.sort(rng.integers(0, count, (6, 9)), axis=axis) for count, axis in ((5, 0), (7, 1))])
    for one in labels:
        assert set(np.unique(one)) == set(range(one.max() + 1))
    return torch.from_numpy(image), torch.from_numpy(labels)


def _by_hand(image: np.ndarray, labels: np.ndarray) -> tuple[list[list[float]], set[tuple[int, int]]]:
    rows, columns = labels.shape
    features, edges = [], set()
    for region in range(labels.max() + 1):
        pixels = [(row, column) for row in range(rows) for column in range(columns) if labels[row, column] == region]
        sides = 0
        for row, column in pixels:
            for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                y, x = row + down, column + right
                inside = 0 <= y < rows and 0 <= x < columns
                if not inside or labels[y, x] != region:
                    sides += 1
                if inside and labels[y, x] != region:
                    edges.add((region, int(labels[y, x])))
        values = np.array([image[:, row, column] for row, column in pixels], np.float64)
        # A pixel is a square: nine points in it have nearly its moments (8/9 of 1/12 on each axis).
        offsets = [(y, x) for y in (-1 / 3, 0, 1 / 3) for x in (-1 / 3, 0, 1 / 3)]
        spread = np.array([(row + y, column + x) for row, column in pixels for y, x in offsets])
        axes = np.linalg.eigvalsh(np.cov(spread.T, bias=True) + np.eye(2) * (1 / 12 - 2 / 27))
        area = len(pixels)
        features.append(
            [
                *values.mean(0), *values.std(0), math.log(area / _PIXELS), math.log(sides / (4 * math.sqrt(_PIXELS))),
                4 * math.pi * area / sides**2, math.sqrt(axes[0] / axes[1]),
            ]
        )  # fmt: skip
    return features, edges


def test_features_and_edges_match_counting_by_hand() -> None:
    image, labels = _maps()
    graph = region_graph(image, labels, pixels=_PIXELS)
    features, edges, first = [], set(), 0
    for picture, regions in zip(image.numpy(), labels.numpy(), strict=True):
        found, touching = _by_hand(picture, regions)
        edges |= {(one + first, other + first) for one, other in touching}
        features += found
        first += len(found)
    assert graph.features.shape == (first, 2 * 3 + SHAPE_FEATURES)
    np.testing.assert_allclose(graph.features, features, rtol=1e-4, atol=1e-5)
    assert {tuple(pair) for pair in graph.edges.T.tolist()} == edges
    assert graph.edges.shape[1] == len(edges), "each edge once in each direction"
    torch.testing.assert_close(graph.nodes[1], labels[1] + int(labels[0].max()) + 1)


@pytest.mark.parametrize("turn", range(8))
def test_a_turned_image_with_its_turned_superpixels_is_the_same_graph(turn: int) -> None:
    image, labels = _maps()

    def turned(values: torch.Tensor) -> torch.Tensor:
        values = torch.rot90(values, turn % 4, (-2, -1))
        return values.flip(-1) if turn >= 4 else values

    before = region_graph(image, labels, pixels=_PIXELS)
    after = region_graph(turned(image), turned(labels), pixels=_PIXELS)
    torch.testing.assert_close(after.features, before.features, rtol=1e-4, atol=1e-5)
    assert torch.equal(after.edges, before.edges)


def test_one_region_has_no_edge_and_no_nan() -> None:
    graph = region_graph(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.int64), pixels=9)
    assert graph.edges.shape == (2, 0)
    expected = [0, 0, 0, 0, 0, 0, math.pi / 4, 1]
    torch.testing.assert_close(graph.features, torch.tensor([expected]), rtol=1e-5, atol=1e-5)


def test_the_far_corner_of_a_large_window_is_measured_as_well_as_the_near_one() -> None:
    labels = torch.zeros(1, 2000, 2000, dtype=torch.int64)
    labels[0, :3, :5], labels[0, -3:, -5:] = 1, 2
    graph = region_graph(torch.zeros(1, 1, 2000, 2000), labels, pixels=16)
    torch.testing.assert_close(graph.features[1], graph.features[2])


# --- superpixels ---


def _image(rows: int = 48, columns: int = 40) -> np.ndarray:
    rng = np.random.default_rng(1)
    image = rng.normal(0, 0.3, (4, rows, columns))
    image[:, :, columns // 2 :] += 2
    return image.astype(np.float32)


def test_superpixels_are_connected_numbered_without_gaps_and_always_the_same() -> None:
    rule = SuperpixelRule(pixels=16)
    labels = rule.divide(_image())
    assert labels.shape == (48, 40)
    count = labels.max() + 1
    assert set(np.unique(labels)) == set(range(count))
    assert 0.5 < count / (48 * 40 / 16) < 2
    for region in range(count):
        assert ndimage.label(labels == region)[1] == 1
    np.testing.assert_array_equal(rule.divide(_image()), labels)


def test_superpixels_follow_the_edge_of_the_image_content() -> None:
    labels = SuperpixelRule(pixels=16, compactness=1).divide(_image())
    across = set(np.unique(labels[:, :20])) & set(np.unique(labels[:, 20:]))
    assert len(across) <= 2


def test_one_bright_pixel_does_not_change_the_superpixels_elsewhere() -> None:
    # scikit-image divides by the image's range: without our correction, one roof would turn all others into squares.
    image, rule = _image(), SuperpixelRule(pixels=16)
    before = rule.divide(image)
    image[:, 2, 2] = 500
    after = rule.divide(image)
    far = np.s_[24:, 20:]
    same = _pairs(before[far]) == _pairs(after[far])
    assert same.mean() > 0.99


def _pairs(labels: np.ndarray) -> np.ndarray:
    """Which neighbours in a row share a superpixel, regardless of ids."""
    return labels[:, 1:] == labels[:, :-1]


@pytest.mark.parametrize("side", [1, 2, 5])
def test_any_size_and_a_constant_image_can_be_divided(side: int) -> None:
    labels = SuperpixelRule(pixels=16).divide(np.zeros((2, side, side), np.float32))
    assert labels.shape == (side, side)
    assert labels.min() == 0


def test_an_impossible_rule_raises_an_error() -> None:
    for given in ({"pixels": 0}, {"compactness": 0.0}):
        with pytest.raises(ConfigError, match=r"superpixels of \d+ px with compactness"):
            SuperpixelRule(**given)
