"""The graph of an image's superpixels: features of each, and edges between those that touch."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SHAPE_FEATURES = 4
"""Area, perimeter, compactness, elongation."""


@dataclass(frozen=True)
class RegionGraph:
    """The superpixels of a batch as one graph, without edges between images.

    Attributes:
        nodes: (B, H, W) int64, the node of each pixel, numbered over the batch.
        features: (N, 2 x bands + `SHAPE_FEATURES`) float32.
        edges: (2, E) int64, each pair of neighbours in both directions, once each.
    """

    nodes: Tensor
    features: Tensor
    edges: Tensor


def region_graph(image: Tensor, labels: Tensor, *, pixels: int) -> RegionGraph:
    """Build the graph.

    The features of a node: mean and standard deviation of each band; the logarithms of its area and perimeter relative
    to a square of ``pixels``; compactness, 4 pi area / perimeter²; elongation, the ratio of the minor to the major
    axis. They depend neither on its position nor on turns and flips of the image.

    Args:
        image: (B, bands, H, W), standardised.
        labels: (B, H, W) int64, ids of each image 0, 1, ... without gaps.
        pixels: number in an average superpixel.
    """
    counts = labels.flatten(1).amax(1) + 1
    first = counts.cumsum(0) - counts
    nodes = labels + first[:, None, None]
    total, flat = int(counts.sum()), nodes.flatten()
    area = torch.bincount(flat, minlength=total).float()
    spectrum = _spectrum(image.float(), flat, area)
    shape = _shape(nodes, area, pixels=pixels)
    return RegionGraph(nodes, torch.cat([spectrum, shape], dim=1), _edges(nodes, total))


def _sums(values: Tensor, flat: Tensor, total: int) -> Tensor:
    """Sum of (pixels, k) over each node."""
    return values.new_zeros(total, values.shape[1]).index_add_(0, flat, values)


def _spectrum(image: Tensor, flat: Tensor, area: Tensor) -> Tensor:
    values = image.movedim(1, -1).flatten(0, 2)
    mean = _sums(values, flat, len(area)) / area[:, None]
    # From the deviations: a difference of two large sums would lose small variances.
    variance = _sums((values - mean[flat]) ** 2, flat, len(area)) / area[:, None]
    return torch.cat([mean, variance.sqrt()], dim=1)


def _shape(nodes: Tensor, area: Tensor, *, pixels: int) -> Tensor:
    flat, total = nodes.flatten(), len(area)
    perimeter = _perimeter(nodes, total)
    images, height, width = nodes.shape
    # In float64: at a window's far corner the squares are large, but a superpixel's extent is small.
    rows = torch.arange(height, device=nodes.device, dtype=torch.float64)
    columns = torch.arange(width, device=nodes.device, dtype=torch.float64)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).expand(images, -1, -1, -1).flatten(0, 2)
    centre = _sums(places, flat, total) / area[:, None]
    offset = places - centre[flat]
    moments = torch.stack([offset[:, 0] ** 2, offset[:, 1] ** 2, offset[:, 0] * offset[:, 1]], dim=1)
    rr, cc, rc = (_sums(moments, flat, total) / area[:, None]).unbind(1)
    rr, cc = rr + 1 / 12, cc + 1 / 12  # a pixel is a square, not a point
    middle, half = (rr + cc) / 2, torch.hypot((rr - cc) / 2, rc)
    elongation = ((middle - half) / (middle + half)).sqrt().float()
    return torch.stack(
        [
            (area / pixels).log(),
            (perimeter / (4 * math.sqrt(pixels))).log(),
            4 * math.pi * area / perimeter**2,
            elongation,
        ],
        dim=1,
    )


def _perimeter(nodes: Tensor, total: int) -> Tensor:
    """Number of pixel sides between a node and its neighbours or the image's border."""
    framed = torch.nn.functional.pad(nodes, (1, 1, 1, 1), value=-1)
    here = framed[:, 1:-1, 1:-1]
    around = (framed[:, :-2, 1:-1], framed[:, 2:, 1:-1], framed[:, 1:-1, :-2], framed[:, 1:-1, 2:])
    sides = torch.stack([here != other for other in around]).sum(0)
    return _sums(sides.float().reshape(-1, 1), nodes.flatten(), total)[:, 0]


def _edges(nodes: Tensor, total: int) -> Tensor:
    """Pairs of nodes with pixels that share a side."""
    pairs = [(nodes[:, :-1], nodes[:, 1:]), (nodes[:, :, :-1], nodes[:, :, 1:])]
    one = torch.cat([pair[0].flatten() for pair in pairs])
    other = torch.cat([pair[1].flatten() for pair in pairs])
    touch = one != other
    both = torch.cat([one[touch] * total + other[touch], other[touch] * total + one[touch]])
    codes = both.unique()  # type: ignore[no-untyped-call]
    return torch.stack([codes // total, codes % total])
