"""The label rules. To add a rule, add an entry to `LABEL_RULES`. Light to import."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from pydantic import Field, field_validator, model_validator

from terraseg.contracts.splits import IGNORE
from terraseg.core.settings import Strict

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class LabelRule(Strict):
    """How a pixel gets its class from the footprints.

    Attributes:
        kind: ``centre``: a pixel is of the class if its centre lies in a footprint. ``coverage``: it is of the class if
            footprints cover at least ``threshold`` of it. There is no all-touched rule: at 10 m it would make buildings
            more than three times too large.
        threshold: least covered share for the class, 0 to 1; rule ``coverage`` only.
        ignore_from: pixels covered by at least this share, but by less than ``threshold``, are ignored instead of
            background; rule ``coverage`` only.
    """

    kind: str = "centre"
    threshold: float | None = Field(default=None, gt=0, le=1)
    ignore_from: float | None = Field(default=None, gt=0, le=1)

    @field_validator("kind")
    @classmethod
    def _kind_is_known(cls, value: str) -> str:
        if value not in LABEL_RULES:
            raise ValueError(f"unknown label rule {value!r}, expected one of {', '.join(LABEL_RULES)}")
        return value

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> "LabelRule":
        rule, given = LABEL_RULES[self.kind], [key for key, value in self if key != "kind" and value is not None]
        if missing := [key for key in rule.needs if key not in given]:
            raise ValueError(f"label_rule {self.kind} needs {', '.join(missing)}")
        if unused := [key for key in given if key not in rule.needs + rule.takes]:
            raise ValueError(
                f"label_rule {self.kind} has no {', '.join(unused)}: choose another kind, or remove the key"
            )
        if self.threshold is not None and self.ignore_from is not None and self.ignore_from >= self.threshold:
            raise ValueError("label_rule ignore_from must be less than threshold")
        return self

    def mask(self, share: "npt.NDArray[np.float32]", inside: "npt.NDArray[np.bool_]") -> "npt.NDArray[np.int8]":
        """Apply the rule, see `RuleKind.mask`."""
        return LABEL_RULES[self.kind].mask(share, inside, self)

    def in_words(self) -> str:
        """The rule as reports print it next to each score."""
        return LABEL_RULES[self.kind].in_words(self)


@dataclass(frozen=True)
class RuleKind:
    """One label rule.

    Attributes:
        mask: makes the (rows, columns) int8 mask (0 background, 1 class, -1 ignore) from the covered share of each
            pixel (0 to 1), whether its centre lies in a footprint, and the settings.
        in_words: makes the text for reports from the settings.
        needs: keys of `LabelRule` that the rule requires.
        takes: keys that it allows in addition.
    """

    mask: "Callable[[npt.NDArray[np.float32], npt.NDArray[np.bool_], LabelRule], npt.NDArray[np.int8]]"
    in_words: Callable[[LabelRule], str]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


def _coverage_mask(
    share: "npt.NDArray[np.float32]", _inside: "npt.NDArray[np.bool_]", rule: LabelRule
) -> "npt.NDArray[np.int8]":
    threshold = cast(float, rule.threshold)
    mask = (share >= threshold).astype("int8")
    if rule.ignore_from is not None:
        mask[(share >= rule.ignore_from) & (share < threshold)] = IGNORE
    return mask


def _coverage_in_words(rule: LabelRule) -> str:
    words = f"at least {100 * cast(float, rule.threshold):g}% of the pixel covered"
    return words + (f", ignored from {100 * rule.ignore_from:g}%" if rule.ignore_from else "")


LABEL_RULES: dict[str, RuleKind] = {
    "centre": RuleKind(
        mask=lambda _share, inside, _rule: inside.astype("int8"),
        in_words=lambda _rule: "pixel centre inside a footprint",
    ),
    "coverage": RuleKind(
        mask=_coverage_mask, in_words=_coverage_in_words, needs=("threshold",), takes=("ignore_from",)
    ),
}
"""The label rules by the name that ``kind`` has in the config."""
