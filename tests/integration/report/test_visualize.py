import base64
import html.parser
import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from helpers.comparisons import make_comparison
from helpers.factories import ATTRIBUTION, make_dataset, make_probability, make_product, make_scene, make_truth
from terraseg.api.assess import visualize
from terraseg.assess.evaluate import evaluate
from terraseg.assess.index_baseline import index_baseline
from terraseg.contracts.comparison import write_tables
from terraseg.contracts.dataset import IGNORE, open_dataset
from terraseg.contracts.result import Estimate, read_metrics, write_metrics
from terraseg.contracts.scene import find_scenes
from terraseg.errors import DatasetError, SceneError
from terraseg.report.charts import training_chart
from terraseg.report.figures import training_curves
from terraseg.report.maps import View, label_map, richest_block, whole
from terraseg.report.report import write_report

SIZE = (128, 256)
NAMES = [
    "curves",
    "iou",
    "label_efficiency",
    "pipeline_overview",
    "scene",
    "size_recall",
    "splits",
    "test_area",
    "thresholds",
    "training",
]


@pytest.fixture(scope="module")
def ground():
    return make_truth(SIZE, seed=4)


@pytest.fixture(scope="module")
def place(tmp_path_factory, ground):
    root = tmp_path_factory.mktemp("place")
    scene = make_scene(root / "raw", SIZE, truth=ground)
    dataset = make_dataset(root / "processed", scene, ground)
    for name, skill in (("weak", 0.2), ("<b>strong</b>", 0.8)):
        probability = make_probability(ground, skill=skill)
        make_product(
            root / "results/predictions" / name.strip("</b>"), scene, probability, experiment=name,
            model_licence=f"{name.strip('</b>')}-licence", bands=["B02", "B8A"],
        )  # fmt: skip
        evaluate(
            predictions=root / "results/predictions", ground_truth=root / "processed", experiment=name,
            output=root / "results/metrics" / f"{name.strip('</b>')}.json",
        )  # fmt: skip
    index_baseline(dataset=dataset, output=root / "results/metrics")
    _add_objects(root / "results/metrics/weak.json")
    (root / "outputs/weak").mkdir(parents=True)
    curve = {"step": [10, 20], "train/loss": [2.0, 1.0], "val/loss": [2.5, 1.5], "val/iou": [0.2, 0.1]}
    pd.DataFrame(curve).to_csv(root / "outputs/weak/metrics.csv")
    # Of another dataset and written first; the report must still show its own dataset first.
    elsewhere = {"one": (0.3, 0.5, 0.6), "two": (0.3, 0.5, 0.6)}
    write_tables(root / "results", make_comparison(elsewhere, name="city", attribution="<i>made</i> up", leave_out=1))
    here = {"weak": (0.2, 0.3, 0.6), "strong": (0.3, 0.5, 0.61)}
    write_tables(root / "results", make_comparison(here, name="here", dataset_hash=dataset.info.content_hash))
    return root


def _add_objects(path):
    """Add object metrics, as with footprints: none below 100 m², few above 1600 m²."""
    known = {"object_recall_100_400_m2": 0.111, "object_recall_400_1600_m2": 0.444, "object_f1_0.3": 0.333}
    found = {name: Estimate(value=value, low=value - 0.1, high=value + 0.1) for name, value in known.items()}
    found |= {
        "object_f1_0.5": Estimate(value=0.1, low=0.0, high=0.2),
        "object_recall_0_100_m2": Estimate(value=None, reason="undefined"),
        "object_recall_1600_inf_m2": Estimate(value=0.7, reason="one unit only"),
        "count_bias": Estimate(value=-0.25, low=-0.5, high=0.0),
    }
    metrics = read_metrics(path)
    write_metrics(path, metrics.model_copy(update={"figures": {**metrics.figures, **found}}))


def _visualize(place, output):
    return visualize(
        results=place / "results",
        ground_truth=place / "processed",
        scenes=place / "raw",
        output=output / "figures",
        report=output / "report.html",
        trainings=place / "outputs",
    )


@pytest.fixture(scope="module")
def drawn(place, tmp_path_factory):
    output = tmp_path_factory.mktemp("drawn")
    return output, _visualize(place, output)


class _Page(html.parser.HTMLParser):
    """Collects what a browser would load, and the text."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.alts, self.ids, self.links, self.open, self.text = [], [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.loaded += [given[key] for key in ("src", "srcset", "data", "action", "poster") if key in given]
        self.loaded += [given["href"]] if tag == "link" else []
        self.links += [given["href"]] if tag == "a" else []
        self.alts += [given["alt"]] if tag == "img" else []
        self.ids += [given["id"]] if "id" in given else []
        if tag not in {"meta", "img", "link", "br", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_every_figure_is_drawn_as_png_and_svg(drawn):
    _, files = drawn
    assert sorted(file.stem for file in files if file.suffix == ".png") == NAMES
    assert sorted(file.stem for file in files if file.suffix == ".svg") == NAMES
    for file in files:
        if file.suffix == ".png":
            picture = imread(file)
            assert min(picture.shape[:2]) > 250
            assert picture[..., :3].std() > 0.05


def test_figures_are_the_same_bytes_each_time_and_leave_matplotlib_alone(place, drawn, tmp_path):
    before = dict(mpl.rcParams)
    again = _visualize(place, tmp_path)
    assert dict(mpl.rcParams) == before
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in drawn[1]]
    assert (tmp_path / "report.html").read_bytes() == (drawn[0] / "report.html").read_bytes()


def test_report_is_whole_well_formed_and_loads_nothing(drawn):
    page = _Page((drawn[0] / "report.html").read_text())
    assert page.open == []
    assert len(page.loaded) == len(NAMES) + 3 + 2 * 2  # imagery, shade and label; prediction and error of each model
    assert all(source.startswith("data:image/") for source in page.loaded)
    for source in page.loaded:
        assert len(base64.b64decode(source.split(",")[1], validate=True)) > 100
    assert all(page.alts)
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)


def test_report_says_the_numbers_and_what_they_depend_on(place, drawn):
    text = " ".join(" ".join(_Page((drawn[0] / "report.html").read_text()).text).split())
    strong = read_metrics(place / "results/metrics/strong.json")
    iou = strong.figures["iou"]
    for said in (
        f"{iou.value:.3f} {iou.reason}",
        "pixel centre in a square",
        strong.warnings[0],
        f"{strong.pixels.valid:,} pixels of 10 m",
        ATTRIBUTION,
        strong.dataset_hash,
        "train-test",
    ):
        assert said in text
    rows = re.findall(r"(<b>strong</b>|weak|index_baseline) (?:probability|local|bright|BSI|NDVI|NDBI|NDWI)", text)
    results = [read_metrics(file) for file in (place / "results/metrics").glob("*.json")]
    results.sort(key=lambda result: -result.figures["iou"].value)
    assert rows == [result.experiment for result in results]
    assert f"{rows[0]} maps the class building with an IoU of" in text


def test_report_says_at_its_top_which_model_to_use_with_few_labels(drawn):
    text = " ".join(" ".join(_Page((drawn[0] / "report.html").read_text()).text).split())
    top = text[: text.index("Result Class building")]
    for said in (
        "Which model should I use with 50 labelled chips, and how sure is that?",
        "Use strong: it is better than weak (learning rates untuned).",
        "Better than weak (learning rates untuned): IoU +0.200 [",
        "Measured on the dataset of this report.",
        "one has the highest IoU, but the difference to two is not significant (learning rates untuned).",
        "Measured on another dataset than the rest of this report; 1 training is not finished",
    ):
        assert said in top
    assert top.index("Use strong") < top.index("one has")


def test_report_holds_performance_and_cost_of_each_comparison(drawn):
    text = " ".join(" ".join(_Page((drawn[0] / "report.html").read_text()).text).split())
    own = text[text.index("here: performance") : text.index("city: performance")]
    for said in (
        "strong 100 + 20 0.61",
        "weak 100 + 20 0.60",
        "9.0 M 4.0 M 1 of 2 10 of 20",
        "cpu 100 + 20 [100 + 20, 100 + 20]",
        "3 seeds",
    ):
        assert said in own
    assert "<i>made</i> up" in text


def test_report_says_how_small_footprints_fare_and_what_a_pixel_sees(drawn):
    text = " ".join(" ".join(_Page((drawn[0] / "report.html").read_text()).text).split())
    objects = text[text.index(" Objects ") : text.index("really better?")]
    assert "A pixel is 10 m wide and covers 100 m². A footprint of 400 m² is 4 pixels" in objects
    assert "weak 0.333 [0.233, 0.433] 0.100 [0.000, 0.200] – 0.111 [0.011, 0.211] 0.444 [0.344, 0.544] 0.700" in objects
    drawing = (drawn[0] / "figures/size_recall.svg").read_text()
    for said in ("no such footprint", "1–4 pixels", "&gt; 16 pixels", "0.44"):
        assert f"<!-- {said} -->" in drawing or said in drawing


def test_training_curves_mark_the_checkpoint_that_was_kept(place):
    curves = training_curves(place / "outputs", ["weak", "absent"])
    results = [read_metrics(place / "results/metrics/weak.json")]
    loss, score = training_chart(curves, results).axes
    assert [line.get_ydata().tolist() for line in loss.get_lines()] == [[2.0, 1.0], [2.5, 1.5]]
    assert score.get_lines()[1].get_xydata().tolist() == [[10, 0.2]]


def test_a_foreign_metrics_table_raises_an_error(tmp_path):
    (tmp_path / "weak").mkdir()
    (tmp_path / "weak/metrics.csv").write_text("step,val/iou\n")
    with pytest.raises(DatasetError, match=r"metrics.csv lacks the columns train/loss, val/loss"):
        training_curves(tmp_path, ["weak"])


def test_report_has_a_card_of_each_model_with_its_licence(drawn):
    text = " ".join(" ".join(_Page((drawn[0] / "report.html").read_text()).text).split())
    card = re.search(r"Models <b>strong</b> (.*?) weak (.*?) Limits", text)
    for model, said in zip(("strong", "weak"), card.groups(), strict=True):
        assert f"licence of model and weights {model}-licence" in said
        assert 'bands ["B02", "B8A"]' in said


def test_report_escapes_what_files_say(drawn):
    text = (drawn[0] / "report.html").read_text()
    assert "<b>strong</b>" not in text
    assert "<i>made</i>" not in text


def test_report_refuses_a_result_of_another_dataset(place, ground, tmp_path):
    scene = find_scenes(place / "raw")[0]
    other = make_dataset(tmp_path, scene, ground, stride=16)
    files = sorted((place / "results/metrics").glob("*.json"))
    given = {
        "figures": [],
        "layered": None,
        "predictions": [],
        "scenes": [scene],
        "output": tmp_path / "report.html",
    }
    with pytest.raises(DatasetError, match="another version of"):
        write_report(metrics=files, dataset=other, **given)
    with pytest.raises(DatasetError, match="no results"):
        write_report(metrics=[], dataset=other, **given)
    assert not (tmp_path / "report.html").exists()


def test_missing_predictions_and_foreign_scenes_raise_an_error(place, tmp_path):
    given = {"ground_truth": place / "processed", "output": tmp_path / "figures", "report": tmp_path / "report.html"}
    with pytest.raises(DatasetError, match=r"no comparison at .*other.csv"):
        visualize(results=place / "results", scenes=place / "raw", comparison=tmp_path / "other.csv", **given)
    with pytest.raises(SceneError, match="no finished prediction"):
        visualize(results=tmp_path, scenes=place / "raw", **given)
    make_scene(tmp_path / "raw", SIZE, name="elsewhere")
    with pytest.raises(DatasetError, match=r"none of the scenes in .* \(elsewhere\) has test chips"):
        visualize(results=place / "results", scenes=tmp_path / "raw", **given)


@pytest.mark.parametrize("step", [1, 3])
def test_thinned_labels_are_those_of_the_same_ground(place, ground, step, monkeypatch):
    monkeypatch.setattr("terraseg.report.maps._LARGEST", -(-256 // step))
    dataset, scene = open_dataset(place / "processed"), find_scenes(place / "raw")[0]
    view = whole(scene)
    labels = label_map(view, dataset)
    assert view.step == step
    expected = ground[step // 2 :: step, step // 2 :: step][: labels.shape[0], : labels.shape[1]]
    known = labels != IGNORE
    assert 0.6 < known.mean() < 0.9
    np.testing.assert_array_equal(labels[known], expected[known])


def test_view_reads_the_pixels_that_labels_are_thinned_to(place, monkeypatch):
    import rasterio

    monkeypatch.setattr("terraseg.report.maps._LARGEST", 60)
    scene = find_scenes(place / "raw")[0]
    view = View(scene, rasterio.windows.Window(11, 7, 200, 100))
    with rasterio.open(scene.path) as source:
        np.testing.assert_array_equal(view.read(source, 2), source.read(2)[9:107:4, 13:211:4][:25, :50])


def test_the_richest_block_is_the_one_with_most_of_the_class(place):
    dataset, scene = open_dataset(place / "processed"), find_scenes(place / "raw")[0]
    window = richest_block(scene, dataset, split="test").window
    assert (window.col_off, window.row_off, window.width, window.height) == (224, 0, 32, 128)
