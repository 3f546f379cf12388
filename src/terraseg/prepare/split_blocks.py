"""Blocks of ground, their assignment to splits, and the gap between splits.

The ground is divided into blocks, and each block belongs to one split. Test blocks keep all of their ground. A val
block loses the ground within the gap of a test block; a train block loses the ground within the gap of a val or test
block. So train pays for most of the gap, and test for none of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import shapely

from terraseg.contracts.dataset import SPLITS, Split
from terraseg.errors import SplitError
from terraseg.prepare.config import SplitRule

_ARRANGEMENTS = 200
"""Number of stratified assignments drawn; the one that loses the least ground to gaps is used. The choice depends on
geometry only, never on an image or a score."""


@dataclass(frozen=True)
class Rect:
    """Half-open pixel rectangle of a scene: rows ``top`` to ``bottom``, columns ``left`` to ``right``."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    def grown(self, margin: int) -> "Rect":
        """The rectangle with ``margin`` pixels more on each side."""
        return Rect(self.top - margin, self.left - margin, self.bottom + margin, self.right + margin)

    def moved(self, rows: int, columns: int) -> "Rect":
        """The rectangle moved down and right."""
        return Rect(self.top + rows, self.left + columns, self.bottom + rows, self.right + columns)

    def intersects(self, other: "Rect") -> bool:
        """Whether the rectangles share a pixel."""
        return (
            self.top < other.bottom and other.top < self.bottom and self.left < other.right and other.left < self.right
        )


def make_blocks(
    shape: tuple[int, int], *, tile_size: int, rule: SplitRule, cuts: tuple[int, int] | None = None
) -> list[Rect]:
    """Divide ground into blocks that cover it without overlap. The last block of a row or column takes the remainder.

    Args:
        shape: (rows, columns) of the ground.
        tile_size: side of a chip, in pixels; no block is smaller.
        cuts: pixels at which the strips of val and test start; by default where the shares of the side say.

    Raises:
        SplitError: the ground is smaller than a chip.
    """
    if min(shape) < tile_size:
        raise SplitError(
            f"the labelled ground has {shape[0]} x {shape[1]} px",
            expected=f"room for at least one chip of {tile_size} px",
            fix="choose a smaller --tile-size or a larger area",
        )
    if rule.kind in ("blocks", "polygons"):
        rows, columns = (_even_edges(side, rule.block_chips * tile_size) for side in shape)
    else:
        axis = 1 if rule.kind == "columns" else 0
        inner = cuts or [round(shape[axis] * share) for share in (rule.train, rule.train + rule.val)]
        edges = [0, *inner, shape[axis]]
        rows, columns = ([0, shape[0]], edges) if axis else (edges, [0, shape[1]])
    return [Rect(top, left, bottom, right) for top, bottom in pairwise(rows) for left, right in pairwise(columns)]


def neighbours(blocks: Sequence[Rect], *, gap: int) -> list[list[int]]:
    """For each block, the other blocks within ``gap`` pixels."""
    boxes = shapely.box(*np.array([(block.left, block.top, block.right, block.bottom) for block in blocks]).T)
    near: list[list[int]] = [[] for _ in blocks]
    grown = shapely.box(*(shapely.bounds(boxes) + np.array([-gap, -gap, gap, gap])).T)
    for first, second in shapely.STRtree(boxes).query(grown, predicate="intersects").T.tolist():
        if first != second and blocks[first].grown(gap).intersects(blocks[second]):
            near[first].append(second)
    return near


def assign(
    blocks: Sequence[Rect],
    density: npt.NDArray[np.float64],
    *,
    rule: SplitRule,
    gap: int,
    near: Sequence[Sequence[int]],
    labelled: npt.NDArray[np.float64] | None = None,
) -> list[Split]:
    """The split of each block.

    Blocks are sorted by density and dealt out in groups, so that each split gets its share of dense and of empty
    blocks. Within a group the assignment is random, from ``rule.seed``.

    Args:
        blocks: of one scene.
        density: (blocks,) share of the ground that the class covers.
        gap: pixels between splits.
        near: `neighbours` of the blocks.
        labelled: (blocks,) share of each block that has labels, by default 1; each split gets its share of this ground.

    Raises:
        SplitError: too few blocks for three splits.
    """
    if rule.kind != "blocks":
        return list(SPLITS)
    count = len(blocks)
    sizes = _sizes(count, rule)
    if min(sizes.values()) < 1:
        raise SplitError(
            f"{count} blocks of {rule.block_chips} chips are too few for three splits",
            expected="at least one block for each of train, val and test",
            fix="choose a smaller block_chips or --tile-size, or a larger area",
        )
    random = np.random.default_rng(rule.seed)
    order = np.argsort(-density, kind="stable")
    weights = np.ones(count) if labelled is None else labelled
    best: list[Split] = []
    least = np.inf
    borders = [
        (first, second, _overlap(blocks[first].grown(gap), blocks[second]))
        for first, others in enumerate(near)
        for second in others
        if first < second
    ]
    for _ in range(_ARRANGEMENTS):
        splits = _deal(order, sizes, random)
        # If all blocks are fully labelled, the second term is the same for all draws.
        lost = _lost_ground(splits, borders) + _imbalance(splits, weights, rule) * blocks[0].height * blocks[0].width
        if lost < least:
            best, least = splits, lost
    return best


def keep_out(
    index: int, blocks: Sequence[Rect], splits: Sequence[Split], *, gap: int, near: Sequence[Sequence[int]]
) -> list[Rect]:
    """Ground that block ``index`` loses: test comes before val, and val before train."""
    rank = {"test": 0, "val": 1, "train": 2}
    return [blocks[other].grown(gap) for other in near[index] if rank[splits[other]] < rank[splits[index]]]


def _even_edges(side: int, step: int) -> list[int]:
    count = max(1, side // step)
    return [step * index for index in range(count)] + [side]


def _sizes(count: int, rule: SplitRule) -> dict[Split, int]:
    """Number of blocks of each split: shares by largest remainder, and at least one each if there are three blocks."""
    shares: dict[Split, float] = {"train": rule.train, "val": rule.val, "test": rule.test}
    sizes: dict[Split, int] = {split: int(count * share + 1e-9) for split, share in shares.items()}
    by_remainder = sorted(SPLITS, key=lambda split: sizes[split] - count * shares[split])
    for split in by_remainder[: count - sum(sizes.values())]:
        sizes[split] += 1
    for split in SPLITS:
        largest = max(SPLITS, key=lambda name: sizes[name])
        if sizes[split] == 0 and sizes[largest] > 1:
            sizes[split], sizes[largest] = 1, sizes[largest] - 1
    return sizes


def _deal(order: npt.NDArray[np.intp], sizes: dict[Split, int], random: np.random.Generator) -> list[Split]:
    """Deal blocks to splits, densest first, with the turns of each split spread evenly over the order.

    Each turn has a random jitter of up to one block. So draws differ, but every prefix of the density order still has
    each split's share to within about one block.
    """
    count = len(order)
    splits: list[Split] = ["train"] * count
    slots = sorted(
        ((rank + random.random()) * count / size, split) for split, size in sizes.items() for rank in range(size)
    )
    for block, (_, split) in zip(order, slots, strict=True):
        splits[block] = split
    return splits


def _overlap(first: Rect, second: Rect) -> int:
    height = min(first.bottom, second.bottom) - max(first.top, second.top)
    return height * (min(first.right, second.right) - max(first.left, second.left))


def _imbalance(splits: Sequence[Split], weights: npt.NDArray[np.float64], rule: SplitRule) -> float:
    """Number of blocks' worth of labelled ground that is in another split than the shares ask for."""
    of, shares = np.array(splits), {"train": rule.train, "val": rule.val, "test": rule.test}
    return float(sum(abs(weights[of == split].sum() - share * weights.sum()) for split, share in shares.items()))


def _lost_ground(splits: Sequence[Split], borders: Sequence[tuple[int, int, int]]) -> int:
    return sum(pixels for first, second, pixels in borders if splits[first] != splits[second])
