"""The target part of the check: the class is in the dataset; shares need coverage, and two classes."""

from collections.abc import Iterable

from terraseg.contracts.bundle import SHARE_TARGET, Target
from terraseg.contracts.dataset import ChipDataset
from terraseg.learn.check.finding import Finding, error
from terraseg.learn.training.losses import SHARE

_MODEL = "model.init_args"


def target_of(losses: Iterable[str]) -> Target:
    """What a training with these losses predicts."""
    return SHARE_TARGET if SHARE in losses else "class"


def check_target(dataset: ChipDataset, *, target: Target, positive: int) -> list[Finding]:
    """The dataset has the class, and what the target needs.

    Args:
        target: of `target_of`.
        positive: id of the class.
    """
    where, classes = f"{_MODEL}.loss", dataset.info.classes
    if positive not in classes:
        return [error(f"{_MODEL}.positive_class", f"{positive}", expected=f"one of {sorted(classes)}")]
    if target != SHARE_TARGET:
        return []
    if len(classes) != 2 or positive != 1:
        found = f"{SHARE} with {len(classes)} classes ({', '.join(classes.values())}) and positive_class {positive}"
        return [error(where, found, expected="two classes and positive_class 1", fix="choose ce, dice or another loss")]
    if not dataset.has_coverage:
        found = f"{SHARE}, but {dataset.root} does not say how much of each pixel is covered: its masks were imported"
        fix = "prepare it from scenes and footprints (terraseg data preprocess), or choose another loss"
        return [error(where, found, expected="a dataset made from footprints", fix=fix)]
    return []
