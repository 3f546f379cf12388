"""Outlines of labelled regions: edges of pixels, joined to rings by array operations, and simplified."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

Index = npt.NDArray[np.intp]


def outlines(labels: npt.NDArray[np.int32], *, top: int = 0) -> npt.NDArray[np.object_]:
    """The polygon of each region along the edges of its pixels, with its holes, and points only at turns.

    Shells run counter-clockwise and holes clockwise if rows count downwards, as on a north-up map. A hole may touch
    its shell or another hole at a corner, which is valid.

    Args:
        labels: (rows, columns), 0 for the background, 1 to n for the n 4-connected regions.
        top: row number of the first row.

    Returns:
        n polygons in pixel coordinates (column, row).
    """
    padded = np.pad(labels, 1)
    selected = padded > 0
    across, down = _runs(selected), _runs(np.ascontiguousarray(selected.T))
    width = padded.shape[1]
    ends = {  # corners as flat indexes in the padded image, each that of the pixel to its lower right
        "across": (across.line * width + across.first, across.line * width + across.last),
        "down": (down.first * width + down.line, down.last * width + down.line),
    }
    flat = padded.ravel()

    def key(corner: Index, sign: npt.NDArray[np.int8], *, leaves: bool) -> Index:
        """Name one of the two ways through a corner. If two regions meet there, each stays with its own pixel.

        If a region meets itself there, its outline stays with the background instead, so that no ring touches itself.
        """
        nw, ne, sw, se = (flat[corner - step] for step in (width + 1, width, 1, 0))
        crossed = ((nw > 0) == (se > 0)) & ((ne > 0) == (sw > 0)) & ((nw > 0) != (ne > 0))
        itself = leaves & (nw == se) & (ne == sw)
        name: Index = 2 * corner + (crossed & ((sign > 0) ^ itself))
        return name

    # With the region to the right: rightwards above it, leftwards below it, up on its left, down on its right.
    rightwards, upwards = across.sign > 0, down.sign > 0
    begin_across, end_across = _directed(ends["across"], forward=rightwards)
    begin_down, end_down = _directed(ends["down"], forward=~upwards)
    to_down = _matched(key(end_across, across.sign, leaves=False), key(begin_down, -down.sign, leaves=True))
    to_across = _matched(key(end_down, down.sign, leaves=False), key(begin_across, across.sign, leaves=True))
    ring, place = _cycles(to_across[to_down])

    # Backwards, so that the region is to the left.
    order = np.lexsort((place, ring))
    corners = np.stack([end_across[order], begin_across[order]], axis=1).ravel()
    points = np.stack([corners % width - 1.0, corners // width - 1.0 + top], axis=1)
    first, of_run = np.unique(ring, return_inverse=True)
    rings = shapely.linearrings(points, indices=np.repeat(np.sort(of_run), 2))
    inside = np.where(rightwards[first], ends["across"][0][first], ends["across"][0][first] - width)
    of_ring = flat[inside]
    in_turn = np.argsort(of_ring, kind="stable")  # the shell, which begins above its holes, stays first
    polygons: npt.NDArray[np.object_] = shapely.polygons(rings[in_turn], indices=of_ring[in_turn] - 1)
    return polygons


@dataclass(frozen=True)
class _Runs:
    """Straight runs of edges between one line of pixels and the next, (n,) each, line by line.

    ``sign`` is 1 if the region is below the edges and -1 if it is above them; ``last`` is one after the last.
    """

    line: Index
    first: Index
    last: Index
    sign: npt.NDArray[np.int8]


def simplified(polygons: npt.NDArray[np.object_], *, tolerance: float) -> npt.NDArray[np.object_]:
    """Polygons with fewer points, by Douglas-Peucker, ring by ring.

    Polygons that this breaks use the much slower way that keeps their topology.

    Args:
        polygons: any number.
        tolerance: largest distance of a dropped point from the new outline, in units of the coordinates.
    """
    rings, of_ring = shapely.get_rings(polygons, return_index=True)
    rings = shapely.simplify(rings, tolerance, preserve_topology=False)
    broken = np.zeros(len(polygons), bool)
    broken[of_ring[shapely.get_type_id(rings) != shapely.GeometryType.LINEARRING]] = True  # collapsed
    kept = ~broken[of_ring]
    simple = polygons.copy()
    shapely.polygons(rings[kept], indices=of_ring[kept], out=simple)
    broken |= ~shapely.is_valid(simple)
    simple[broken] = shapely.simplify(polygons[broken], tolerance, preserve_topology=True)
    return simple


def _runs(selected: npt.NDArray[np.bool_]) -> _Runs:
    """The runs across an image with a border of background; a line has the number of the pixels below it."""
    edges = np.zeros(selected.shape, np.int8)
    np.subtract(selected[1:], selected[:-1], out=edges[1:], dtype=np.int8)
    flat = edges.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first, last = changes[flat[changes] != 0], changes[flat[changes - 1] != 0]
    width = selected.shape[1]
    line = first // width
    return _Runs(line, first - line * width, last - line * width, flat[first])


def _directed(ends: tuple[Index, Index], *, forward: npt.NDArray[np.bool_]) -> tuple[Index, Index]:
    return np.where(forward, *ends), np.where(forward, ends[1], ends[0])


def _matched(ends: Index, begins: Index) -> Index:
    """For each key of ``ends`` its index in ``begins``; both have each key once."""
    matched = np.empty(len(ends), np.intp)
    matched[np.argsort(ends)] = np.argsort(begins)
    return matched


def _cycles(successor: Index) -> tuple[Index, Index]:
    """The cycles of a permutation: for each element the smallest one of its cycle, and the number of steps to that.

    By pointer jumping (Wyllie 1979): each round doubles the reach.
    """
    least, jump = np.arange(len(successor)), successor
    while True:
        further = np.minimum(least, least[jump])
        if (further == least).all() and (least[successor] == least).all():
            break
        least, jump = further, jump[jump]
    is_end = least == np.arange(len(successor))
    jump = np.where(is_end, least, successor)
    steps = np.where(is_end, 0, 1)
    while (more := steps[jump]).any():
        steps, jump = steps + more, jump[jump]
    return least, steps
