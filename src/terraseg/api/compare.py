"""Comparing experiments: over label fractions and seeds, on the same ground."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from terraseg.api.options import Option, StrPath
from terraseg.errors import TrainingError

if TYPE_CHECKING:
    from terraseg.contracts.comparison import Tables

_log = logging.getLogger(__name__)


def compare(
    config: Annotated[StrPath, Option(metavar="CONFIG")] = "configs/compare_demo.yaml",
    *,
    cells: StrPath = "outputs/compare",
    output: StrPath = "results",
    overrides: Annotated[Sequence[str], Option(name="set", metavar="[EXPERIMENT:]KEY=VALUE", repeated=True)] = (),
) -> "Tables":
    """Train, predict and score experiments x label fractions x seeds; run it again to continue.

    Args:
        config: YAML of the comparison, see docs/comparison.md.
        cells: folder of the cells of all comparisons; several machines may share it.
        output: folder of comparison.csv; rows of other comparisons there are kept.
        overrides: changes a value in the config of one or of all experiments.

    Returns:
        The tables, as they were written.

    Raises:
        ConfigError: the comparison or one of its experiments is invalid.
        TrainingError: cells failed, or other runs hold all of them.
        OutputError: a folder can't be written.
    """
    from terraseg.api.learn import tune
    from terraseg.api.mapping import predict
    from terraseg.assess.evaluate import evaluate
    from terraseg.comparison.cells import evaluation_of, finished, metrics_of, run_cell, run_cells
    from terraseg.comparison.matrix import load_matrix
    from terraseg.comparison.tables import make_tables
    from terraseg.comparison.tuning import tuned
    from terraseg.contracts.comparison import check_tables, write_tables
    from terraseg.contracts.result import read_metrics

    matrix = load_matrix(Path(config), output=Path(cells), overrides=overrides)
    check_tables(Path(output))
    matrix = tuned(matrix, tune=tune)
    run_cells(matrix, partial(run_cell, predict=predict, evaluate=evaluate))
    evaluation = evaluation_of(matrix)
    results = [
        (cell, result, read_metrics(metrics_of(cell)))
        for cell in matrix.cells
        if (result := finished(cell, evaluation)) is not None
    ]
    if not results:
        raise TrainingError("no cell is finished: other runs hold all of them", fix="run this again after them")
    unfinished = len(matrix.cells) - len(results)
    tables = make_tables(matrix.config, results, budget=matrix.budget, tuning=matrix.tuning, unfinished=unfinished)
    write_tables(Path(output), tables)
    if unfinished:
        _log.warning("other runs hold %d of %d cells: run this again after them", unfinished, len(matrix.cells))
    return tables
