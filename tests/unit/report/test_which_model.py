"""Which model to use, and how sure that is: the sentences agree with the intervals."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from helpers.comparisons import make_comparison
from terraseg.assess.metrics.intervals import holm
from terraseg.report.comparison_tables import answers
from terraseg.report.label_efficiency import label_efficiency
from terraseg.report.which_model import answer, choices, efficiency, performance

_PLANTED = {"base": (0.2, 0.3, 0.6), "better": (0.3, 0.5, 0.61), "worst": (0.1, 0.2, 0.3)}


def test_a_planted_best_is_named_with_its_lead() -> None:
    said = answer(make_comparison(_PLANTED), labelled_chips=70)
    assert said is not None
    assert said.verdict == "Use better: it is better than base and worst (learning rates untuned)."
    text = " ".join(said.evidence)
    assert "better (weights: random) has a mean IoU over 3 seeds of 0.50" in text
    assert "Better than base (learning rates untuned): IoU +0.200 [+0." in text
    assert "ahead in 3 of 3 seeds" in text
    assert "over seeds and ground; there are 40 units of test ground. p is corrected for the 3 pairs" in text
    assert "The IoU of better is 0.49" in text
    assert (said.chips, said.labels) == (70, "50 train + 20 validation")


def test_a_difference_whose_interval_has_zero_is_not_significant() -> None:
    scores = {"base": (0.3, 0.5, 0.6), "sibling": (0.3, 0.5, 0.6), "worst": (0.0, 0.1, 0.2)}
    tables = make_comparison(scores, own=0.1)
    said, (pair, _) = answer(tables, labelled_chips=70), choices(tables)[1].against
    assert said is not None
    assert pair["gain_low"] < 0 < pair["gain"] < pair["gain_high"]
    assert {pair["better"], pair["other"]} == {"base", "sibling"}
    assert (
        said.verdict
        == f"{pair['better']} has the highest IoU, but the difference to {pair['other']} is not significant "
        "(learning rates untuned)."
    )
    text = " ".join(said.evidence)
    assert f"Not significantly better than {pair['other']} (learning rates untuned): IoU +0.0" in text
    assert "Better than worst (learning rates untuned): IoU +0." in text
    assert "Of these, sibling trained fastest: 30.0 min." in text


def test_identical_models_never_differ_significantly() -> None:
    said = answer(make_comparison({"base": (0.3, 0.5, 0.6), "same": (0.3, 0.5, 0.6)}))
    assert said is not None
    assert said.verdict == (
        "base has the highest IoU, but the difference to same is not significant (learning rates untuned)."
    )
    assert "IoU +0.000 [+0.000, +0.000], p = 1.000, ahead in 0 of 3 seeds" in said.evidence[1]


@pytest.mark.parametrize(("asked", "chips"), [(1, 30), (40, 30), (50, 70), (90, 70), (95, 120), (1000, 120)])
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
    tables = make_comparison(_PLANTED, leave_out=1)  # the last seed of worst with all labels
    rows = performance(tables)
    assert rows["experiment"].tolist() == ["better", "base", "worst"]
    assert rows["train_chips"].tolist() == [100, 100, 50]
    assert rows["f1"].iloc[0] == pytest.approx(2 * rows["iou"].iloc[0] / (1 + rows["iou"].iloc[0]), abs=1e-4)
    assert (rows["precision"] == 1).all()
    costs = efficiency(tables)
    assert costs["experiment"].tolist() == ["better", "base", "worst"]
    assert costs.loc[0, ["parameters", "trainable_parameters", "best_step", "device"]].tolist() == [9e6, 4e6, 10, "cpu"]
    assert costs.loc[0, "reached_chips"] == 120
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
    assert [text.get_text() for text in first.get_xticklabels()] == ["10\n+ 20", "50\n+ 20", "100\n+ 20"]
    assert second.get_title(loc="left").startswith("city: IoU")


def test_one_seed_or_two_give_no_verdict_about_methods_and_every_sentence_says_so() -> None:
    for seeds, words in (((0,), "1 seed"), ((0, 1), "2 seeds")):
        tables = make_comparison(_PLANTED, own=0.01, seeds=seeds)
        assert tables.pairs[["p", "p_holm"]].isna().all(axis=None)
        assert tables.pairs["gain_low"].notna().all()  # over ground alone
        said = answer(tables)
        assert said is not None
        assert said.verdict == (
            f"No verdict about the methods ({words}; a verdict needs at least 3): of these trained models (learning "
            "rates untuned), better has the highest IoU."
        )
        text = " ".join(said.evidence)
        assert "These trained models against those of base" in text
        assert "etter than" not in text
        assert "over ground alone, so they are about these trained models, not about the methods" in text
        assert not tables.labels["sure"].any()
        assert tables.labels["surely_chips"].isna().all()
        assert all("of these trained models; what the methods need is not known" in line for line in answers(tables))


def test_too_little_ground_gives_no_interval_and_no_verdict() -> None:
    tables = make_comparison(_PLANTED, own=0.01, units=5)
    assert tables.by_fraction[["iou_low", "versus_baseline_low", "p"]].isna().all(axis=None)
    said = answer(tables)
    assert said is not None
    assert "5 independent units of ground; an interval needs at least 6" in said.verdict
    assert not tables.labels["sure"].any()


def test_after_a_search_no_verdict_says_untuned() -> None:
    tables = make_comparison(_PLANTED, tuning="20 trials of 400 steps for each experiment over lr")
    said = answer(tables)
    assert said is not None
    assert "untuned" not in " ".join([said.verdict, *said.evidence, *answers(tables)])
    assert "Learning rates: 20 trials of 400 steps for each experiment over lr." in tables.words
