import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from terraseg.core.cells import cell_sums, cut


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 30), st.integers(0, 30),
    st.integers(-10, 10), st.integers(0, 5),
)  # fmt: skip
def test_the_cells_hold_each_pixel_once(
    height: int, width: int, side: int, row: int, column: int, origin: int, seed: int
) -> None:
    values = np.random.default_rng(seed).integers(0, 255, (height, width)).astype(np.uint32)
    rows, columns = (cut(at, size, side=side, origin=origin) for at, size in ((row, height), (column, width)))
    sums = cell_sums(values, rows, columns)
    assert sums.sum() == values.sum()
    for down, cell_row in enumerate(rows.cells):
        for right, cell_column in enumerate(columns.cells):
            inside = np.ix_(
                (np.arange(row, row + height) - origin) // side == cell_row,
                (np.arange(column, column + width) - origin) // side == cell_column,
            )
            assert sums[down, right] == values[inside].sum()
            assert (rows.whole[down] and columns.whole[right]) == (values[inside].size == side**2)
