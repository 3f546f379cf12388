"""The search for hyperparameters before a comparison: the same budget for each experiment."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from terraseg.comparison.matrix import Cell, Matrix
from terraseg.core.files import atomic_path, read_yaml
from terraseg.learn.check.config import placed
from terraseg.learn.tune.space import Search, check_space, read_search


def tuned(matrix: Matrix, *, tune: Callable[..., Path]) -> Matrix:
    """The matrix with the best values of each experiment's search in all of its cells, and in their identities.

    A search trains with the smallest fraction and the first seed, so that it sees no more train labels than a cell
    does; cells of other seeds share its values. Its folder is
    ``<cells>/<name>/tune/<experiment>-<hash of everything it depends on>``; a finished search is not run again.

    Args:
        matrix: its `MatrixConfig.tune` has the budget; without it, the matrix is returned as it is.
        tune: runs a search, see `terraseg.learn.tune.search.tune`; takes the config, ``search`` and ``output``.

    Raises:
        ConfigError: an invalid search space, or a key that an experiment lacks.
        TrainingError: no trial of a search finished.
        BusyError: another run is tuning the experiment.
    """
    if matrix.config.tune is None:
        return matrix
    search = read_search(matrix.config.tune.search)
    search = search.model_copy(update={"trials": matrix.config.tune.trials or search.trials})
    fraction, seed = min(matrix.config.fractions), matrix.config.seeds[0]
    first = [cell for cell in matrix.cells if (cell.fraction, cell.seed) == (fraction, seed)]
    for cell in first:
        check_space(search, cell.config, name=f"experiment {cell.experiment}")
    best = {cell.experiment: _best(cell, search, tune=tune) for cell in first}
    count = f"{search.trials} trial{'s' * (search.trials != 1)}"
    keys = ", ".join(key.rpartition(".")[2] for key in search.space)
    return replace(
        matrix,
        cells=tuple(_with(cell, best[cell.experiment]) for cell in matrix.cells),
        tuning=f"{count} of {search.max_steps} steps for each experiment over {keys}, "
        f"at fraction {fraction:g} with seed {seed}",
    )


def _best(cell: Cell, search: Search, *, tune: Callable[..., Path]) -> dict[str, Any]:
    """Sections and arguments of best.yaml."""
    plain = search.model_dump(mode="json")
    identity = _sha256(cell.identity, plain)
    folder = cell.folder.parents[2] / "tune" / f"{cell.experiment}-{identity[:12]}"
    path = folder / "best.yaml"
    if not path.is_file():
        config, space = folder / "config.yaml", folder / "search.yaml"
        for file, values in ((config, placed(cell.config, folder)), (space, plain)):
            with atomic_path(file) as temporary:
                temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        path = tune(config, search=space, output=folder)
    best: dict[str, Any] = read_yaml(path)
    return best


def _with(cell: Cell, best: dict[str, Any]) -> Cell:
    config = dict(cell.config)
    for section, given in best.items():
        config[section] = {**config[section], "init_args": {**config[section]["init_args"], **given["init_args"]}}
    return replace(cell, config=config, identity=_sha256(cell.identity, best))


def _sha256(identity: str, values: dict[str, Any]) -> str:
    return hashlib.sha256(f"{identity}{json.dumps(values, sort_keys=True, default=str)}".encode()).hexdigest()
