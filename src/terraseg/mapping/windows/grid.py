"""Windows over a scene of any size, in panels that bound the memory."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from terraseg.core.windows import WindowAxis

_PANEL_PIXELS, _PANEL_CROPS = 4096, 16
"""Largest width of a panel: this many pixels, or this many crops if that is more."""


@dataclass(frozen=True, eq=False)
class Panel:
    """Neighbouring columns of a scene, from top to bottom, and the windows across them.

    Windows of the panel to the left that reach into its first columns belong to it, too. They are predicted twice, so
    that panels are independent.

    Attributes:
        left: the scene's column where the first window begins; all other columns are counted from here.
        size: columns of the scene that the windows cover.
        crop: pixels of a window.
        offsets: first pixel of each window.
        weights: (windows, crop), from `WindowAxis.weights`.
        finished: the columns (first, one after the last) that the panel is responsible for.
    """

    left: int
    size: int
    crop: int
    offsets: tuple[int, ...]
    weights: npt.NDArray[np.float32]
    finished: tuple[int, int]

    @property
    def padded(self) -> int:
        """Pixels that the windows span: ``size``, or more if the last one reaches beyond the scene."""
        return self.offsets[-1] + self.crop


@dataclass(frozen=True)
class WindowGrid:
    """The windows of a scene, in panels: memory depends on the width of a panel, not on the scene's.

    A strip is the part of a panel that one row of windows finishes. Strips are counted from the top down, panel by
    panel.

    Attributes:
        rows, columns: the windows along both sides.
        panel_pixels: largest width of a panel; by default wide enough that less than 5 % is predicted twice.
    """

    rows: WindowAxis
    columns: WindowAxis
    panel_pixels: int | None = None

    @cached_property
    def panels(self) -> tuple[Panel, ...]:
        """From left to right, of about the same width."""
        columns = self.columns
        most = self.panel_pixels or max(_PANEL_PIXELS, _PANEL_CROPS * columns.crop)
        count = min(-(-columns.size // most), len(columns.offsets))
        shares = np.array_split(np.arange(len(columns.offsets)), count)
        return tuple(self._panel(int(windows[0]), int(windows[-1])) for windows in shares)

    def _panel(self, first: int, last: int) -> Panel:
        columns = self.columns
        begin, end = columns.finished(first)[0], columns.finished(last)[1]
        windows = slice(columns.first_touching(begin), last + 1)
        left = columns.offsets[windows][0]
        return Panel(
            left=left,
            size=min(columns.offsets[last] + columns.crop, columns.size) - left,
            crop=columns.crop,
            offsets=tuple(offset - left for offset in columns.offsets[windows]),
            weights=columns.weights[windows],
            finished=(begin - left, end - left),
        )

    @property
    def strips(self) -> int:
        """Number of strips."""
        return len(self.panels) * len(self.rows.offsets)

    def strip(self, panel: int, row: int) -> int:
        """Index of the strip of a panel and a row of windows."""
        return panel * len(self.rows.offsets) + row

    def place(self, strip: int) -> tuple[int, int]:
        """Index of a strip's panel and of its row of windows."""
        return divmod(strip, len(self.rows.offsets))

    def pixels(self, strip: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of the scene that a strip finishes, (first, one after the last) each."""
        index, row = self.place(strip)
        panel = self.panels[index]
        first, end = panel.finished
        return self.rows.finished(row), (panel.left + first, panel.left + end)
