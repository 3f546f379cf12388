"""Windows over a scene of any size, and the weights that blend them without seams."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from terraseg.errors import ConfigError

_PANEL_PIXELS, _PANEL_CROPS = 4096, 16
"""Largest width of a panel: this many pixels, or this many crops if that is more."""


@dataclass(frozen=True)
class WindowAxis:
    """Windows along one side of a scene: one every ``crop - overlap`` pixels, the last one moved back to the border.

    A side shorter than the crop has one window. It reaches beyond the scene and is filled with nodata.

    Attributes:
        size: pixels of the scene along this side.
        crop: pixels of a window.
        overlap: smallest number of pixels that neighbouring windows share, 1 to ``crop - 1``.
    """

    size: int
    crop: int
    overlap: int

    def __post_init__(self) -> None:
        if self.size < 1 or self.crop < 2:
            raise ConfigError(f"a crop of {self.crop} px on {self.size} px", expected="a crop of 2 px or more")
        if not 0 < self.overlap < self.crop:
            raise ConfigError(
                f"an overlap of {self.overlap} px with a crop of {self.crop} px",
                expected=f"1 to {self.crop - 1} px: less leaves seams, more makes no progress",
                fix=f"choose --overlap {max(1, self.crop // 4)}",
            )

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First pixel of each window, ascending. Together the windows cover every pixel."""
        last = max(self.size - self.crop, 0)
        return (*range(0, last, self.crop - self.overlap), last)

    @property
    def padded(self) -> int:
        """Pixels that the windows span: ``size``, or ``crop`` if that is more."""
        return max(self.size, self.crop)

    @cached_property
    def weights(self) -> npt.NDArray[np.float32]:
        """(windows, crop), 0 to 1: weight of each window at each of its pixels.

        The weights are a partition of unity: at each pixel they add up to 1 over all windows, so nothing has to be
        divided by accumulated weights. Before normalisation a weight rises as a squared sine (Hann) over the overlap
        and is 1 elsewhere, also towards the scene's border. The weights of an image are the product of both axes.
        """
        ramp = min(self.overlap, self.crop // 2)
        rise = np.sin(0.5 * np.pi * (np.arange(ramp) + 0.5) / ramp) ** 2
        raw = np.ones((len(self.offsets), self.crop))
        raw[1:, :ramp] *= rise
        raw[:-1, self.crop - ramp :] *= rise[::-1]
        total = np.zeros(self.padded)
        for offset, window in zip(self.offsets, raw, strict=True):
            total[offset : offset + self.crop] += window
        shares = [total[offset : offset + self.crop] for offset in self.offsets]
        return (raw / np.stack(shares)).astype(np.float32)

    def finished(self, index: int) -> tuple[int, int]:
        """The pixels (first, one after the last) that are final once window ``index`` is blended."""
        last = index + 1 == len(self.offsets)
        return self.offsets[index], self.size if last else self.offsets[index + 1]

    def first_touching(self, pixel: int) -> int:
        """Index of the first window that contributes to ``pixel`` or to a later one."""
        return next(index for index, offset in enumerate(self.offsets) if offset + self.crop > pixel)


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
