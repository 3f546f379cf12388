"""One table holds every label rule."""

import numpy as np
import pytest
from pydantic import ValidationError

from terraseg.prepare.config import PrepareConfig
from terraseg.prepare.labels.rasterize import make_mask
from terraseg.prepare.labels.rules import LABEL_RULES, LabelRule, RuleKind


def test_a_new_rule_is_one_entry_of_the_table(monkeypatch):
    touched = RuleKind(mask=lambda share, _inside, _rule: (share > 0).astype("int8"), in_words=lambda _rule: "touched")
    monkeypatch.setitem(LABEL_RULES, "touched", touched)
    config = PrepareConfig.model_validate({"label_rule": {"kind": "touched"}, "label_shift": "apply"})
    assert config.label_rule_in_words() == "touched, footprints moved onto the imagery"
    share, known = np.array([[0, 0.1, 1]], dtype=np.float32), np.array([[True, True, False]])
    mask, _ = make_mask(share, share > 0.5, rule=config.label_rule, known=known)
    assert (mask.tolist(), mask.dtype) == ([[0, 1, -1]], np.int8)
    with pytest.raises(ValidationError, match=r"touched has no threshold"):
        LabelRule(kind="touched", threshold=0.5)


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"kind": "all_touched"}, "'all_touched'.*centre, coverage"),
        ({"kind": "centre", "ignore_from": 0.2}, "centre.*ignore_from"),
        ({"kind": "coverage"}, "coverage.*threshold"),
        ({"kind": "coverage", "threshold": 0.5, "ignore_from": 0.5}, "ignore_from.*threshold"),
    ],
)
def test_keys_that_do_not_fit_the_rule_are_named(values, facts):
    with pytest.raises(ValidationError, match=facts):
        LabelRule.model_validate(values)


def test_the_words_of_each_rule():
    assert LabelRule().in_words() == "pixel centre inside a footprint"
    coverage = LabelRule(kind="coverage", threshold=0.5, ignore_from=0.25)
    assert coverage.in_words() == "at least 50% of the pixel covered, ignored from 25%"
    fine = LabelRule(kind="coverage", threshold=0.125, ignore_from=0.004)
    assert fine.in_words() == "at least 12.5% of the pixel covered, ignored from 0.4%"
