"""The step as the command line calls it: a comparison's YAML in, its cells run, its tables out."""

import logging
from collections.abc import Sequence
from pathlib import Path

from terraseg.compare.cells import evaluation_of, finished, metrics_of, run_cells
from terraseg.compare.matrix import load_matrix
from terraseg.compare.tables import make_tables
from terraseg.contracts.comparison import Tables, check_tables, write_tables
from terraseg.contracts.result import read_metrics
from terraseg.errors import TrainingError

_log = logging.getLogger(__name__)


def compare(config: Path, *, cells: Path, output: Path, overrides: Sequence[str] = ()) -> Tables:
    """Run the cells that are not finished, and write what they say.

    Args:
        config: the YAML.
        cells: folder of all comparisons' cells; runs of several machines may share it.
        output: folder of `record.FILES`; the rows of other comparisons there stay.
        overrides: ``[EXPERIMENT:]KEY=VALUE`` each.

    Raises:
        TrainingError: cells failed, or all of them are other runs' still.
        TerrasegError: what `load_matrix`, `make_tables` and `write_tables` raise.
    """
    matrix = load_matrix(config, output=cells, overrides=overrides)
    check_tables(output)
    run_cells(matrix)
    evaluation = evaluation_of(matrix)
    results = [
        (cell, result, read_metrics(metrics_of(cell)))
        for cell in matrix.cells
        if (result := finished(cell, evaluation)) is not None
    ]
    if not results:
        raise TrainingError("no cell is finished: other runs hold all of them", fix="run this again after them")
    unfinished = len(matrix.cells) - len(results)
    tables = make_tables(matrix.config, results, budget=matrix.budget, unfinished=unfinished)
    write_tables(output, tables)
    if unfinished:
        _log.warning("%d of %d cells are other runs' still: run this again after them", unfinished, len(matrix.cells))
    return tables
