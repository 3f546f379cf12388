"""Which model to use, and how sure that is: the sentences agree with the intervals."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from helpers.comparisons import make_comparison
from terraseg.assess.metrics.bootstrap import holm
from terraseg.report.label_efficiency import label_efficiency
from terraseg.report.which_model import answer, choices, efficiency, performance

_PLANTED = {"base": (0.2, 0.3, 0.6), "better": (0.3, 0.5, 0.61), "worst": (0.1, 0.2, 0.3)}


def test_a_planted_best_is_named_with_its_lead() -> None:
    said = answer(make_comparison(_PLANTED))
    assert said is not None
    assert said.verdict == "Use better: it is better than base and worst."
    text = " ".join(said.evidence)
    assert "better (weights: random) has an IoU of 0.50" in text
    assert "Better than base: IoU +0.200 [+0." in text
    assert "ahead in 2 of 2 seeds" in text
    assert "over 40 cells of test ground. p is corrected for the 3 pairs" in text
    assert "The IoU of better is 0.49" in text
    assert said.chips == 50


def test_a_difference_whose_interval_has_zero_is_not_significant() -> None:
    scores = {"base": (0.3, 0.5, 0.6), "sibling": (0.3, 0.5, 0.6), "worst": (0.0, 0.1, 0.2)}
    tables = make_comparison(scores, own=0.1)
    said, (pair, _) = answer(tables), choices(tables)[1].against
    assert said is not None
    assert pair["gain_low"] < 0 < pair["gain"] < pair["gain_high"]
    assert {pair["better"], pair["other"]} == {"base", "sibling"}
    assert (
        said.verdict
        == f"{pair['better']} has the highest IoU, but the difference to {pair['other']} is not significant."
    )
    text = " ".join(said.evidence)
    assert f"Not significantly better than {pair['other']}: IoU +0.0" in text
    assert "Better than worst: IoU +0." in text
    assert "Of these, sibling trained fastest: 30.0 min." in text


def test_identical_models_never_differ_significantly() -> None:
    said = answer(make_comparison({"base": (0.3, 0.5, 0.6), "same": (0.3, 0.5, 0.6)}))
    assert said is not None
    assert said.verdict == "base has the highest IoU, but the difference to same is not significant."
    assert "IoU +0.000 [+0.000, +0.000], p = 1.000, ahead in 0 of 2 seeds" in said.evidence[1]


@pytest.mark.parametrize(("asked", "chips"), [(1, 10), (20, 10), (25, 50), (60, 50), (80, 100), (1000, 100)])
def test_the_nearest_measured_number_of_chips_answers(asked: int, chips: int) -> None:
    said = answer(make_comparison(_PLANTED), labelled_chips=asked)
    assert said is not None
    assert said.chips == chips


def test_a_single_experiment_gives_no_choice_and_no_experiment_no_answer() -> None:
    alone = answer(make_comparison({"base": (0.3, 0.5, 0.6)}))
    assert alone is not None
    assert alone.verdict == "Only base was measured with this number of labels: there is no choice."
    assert answer(make_comparison({"base": (0.3, 0.5, 0.6)}, leave_out=3)) is None


def test_p_of_a_pair_is_corrected_for_all_pairs_at_its_fraction() -> None:
    pairs = make_comparison(_PLANTED, own=0.1).pairs
    assert pairs.groupby("fraction").size().tolist() == [3, 3, 3]
    for _, here in pairs.groupby("fraction"):
        assert here["p_holm"].tolist() == holm(here["p"].tolist())
    assert (pairs["gain"] >= 0).all()


def test_pairs_with_the_baseline_agree_with_the_gains_over_it() -> None:
    tables = make_comparison(_PLANTED, own=0.1)
    for row in tables.pairs.to_dict("records"):
        if "base" in (row["better"], row["other"]):
            sign, other = (1, row["better"]) if row["other"] == "base" else (-1, row["other"])
            own = tables.by_fraction.query(f"experiment == {other!r} and fraction == {row['fraction']}").iloc[0]
            assert row["gain"] == pytest.approx(sign * own["versus_baseline"])
            assert row["p"] == pytest.approx(own["p"])


def test_both_tables_have_a_row_per_experiment_with_its_most_labels() -> None:
    tables = make_comparison(_PLANTED, leave_out=1)  # the second seed of worst with all labels
    rows = performance(tables)
    assert rows["experiment"].tolist() == ["better", "base", "worst"]
    assert rows["labelled_chips"].tolist() == [100, 100, 50]
    assert rows["f1"].iloc[0] == pytest.approx(2 * rows["iou"].iloc[0] / (1 + rows["iou"].iloc[0]))
    assert (rows["precision"] == 1).all()
    costs = efficiency(tables)
    assert costs["experiment"].tolist() == ["better", "base", "worst"]
    assert costs.loc[0, ["parameters", "trainable_parameters", "best_step", "device"]].tolist() == [9e6, 4e6, 10, "cpu"]
    assert costs.loc[0, "reached_chips"] == 100
    assert pd.isna(costs.loc[2, "reached_chips"])


def test_the_curve_has_a_line_and_a_band_per_experiment_and_the_level_of_the_baseline() -> None:
    tables = make_comparison(_PLANTED)
    figure = label_efficiency([tables, make_comparison({"base": (0.3, 0.5, 0.6)}, name="city")])
    assert isinstance(figure, Figure)
    first, second = figure.axes
    assert [text.get_text() for text in first.get_legend().get_texts()] == [*_PLANTED, "base, all labels"]
    line = first.get_lines()[0]
    base = tables.by_fraction.query("experiment == 'base'")
    assert line.get_xydata().tolist() == base[["labelled_chips", "iou"]].to_numpy().tolist()
    assert len(first.collections) == 3
    assert second.get_title(loc="left").startswith("city: IoU")
