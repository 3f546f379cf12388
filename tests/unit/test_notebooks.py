"""Notebooks are kept with their outputs, so that they can be read without being run."""

import re
from pathlib import Path

import nbformat
import pytest

from helpers.paths import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_was_run_from_top_to_bottom_and_fits_into_a_page(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output.output_type for cell in cells for output in cell.outputs]
    assert len(kinds) >= 4
    assert "error" not in kinds
    assert path.stat().st_size < 1_000_000
    assert not re.search(r'[" ](/home|/root|/tmp|/work)/', path.read_text(encoding="utf-8"))
