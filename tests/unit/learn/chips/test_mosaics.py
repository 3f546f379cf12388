import pandas as pd
import pytest

from terraseg.learn.chips.mosaics import rectangles


def _rectangles(*corners: tuple[str, int, int]) -> list[list[list[int]]]:
    return rectangles(pd.DataFrame(corners, columns=["scene", "row", "column"]), side=10)


def test_adjoining_chips_are_one_rectangle_in_their_order_on_the_ground() -> None:
    assert _rectangles(("a", 10, 10), ("a", 0, 0), ("a", 10, 0), ("a", 0, 10)) == [[[1, 3], [2, 0]]]


@pytest.mark.parametrize(
    ("second", "why"),
    [(("b", 0, 10), "another scene"), (("a", 0, 11), "a gap"), (("a", 0, 9), "an overlap"), (("a", 1, 10), "a step")],
)
def test_chips_that_do_not_adjoin_stay_apart(second: tuple[str, int, int], why: str) -> None:
    assert _rectangles(("a", 0, 0), second) == [[[0]], [[1]]], why


def test_every_chip_is_in_one_rectangle_without_gaps() -> None:
    missing = [("a", 10 * row, 10 * column) for row in range(5) for column in range(7) if (row, column) != (2, 3)]
    found = _rectangles(*missing)
    assert sorted(chip for rectangle in found for line in rectangle for chip in line) == list(range(len(missing)))
    assert all(len(line) == len(rectangle[0]) for rectangle in found for line in rectangle)
    assert sorted((len(rectangle), len(rectangle[0])) for rectangle in found) == [(1, 3), (1, 3), (2, 7), (2, 7)]


def test_the_size_of_a_mosaic_is_limited() -> None:
    found = _rectangles(*(("a", 10 * row, 10 * column) for row in range(9) for column in range(17)))
    assert max(len(rectangle) for rectangle in found) == max(len(rectangle[0]) for rectangle in found) == 8
