"""The report in a real browser: layers, swipe, panning, keyboard, touch, phone and paper, and no network."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from helpers.comparisons import make_comparison
from helpers.factories import make_dataset, make_probability, make_product, make_scene, make_truth
from terraseg.api.assess import visualize
from terraseg.assess.evaluate import evaluate
from terraseg.contracts.comparison import write_tables
from terraseg.contracts.dataset import open_dataset
from terraseg.contracts.scene import find_scenes
from terraseg.report.page import pannable_map

SIZE = (128, 256)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
YELLOW, VERMILION, BLUE = (240, 228, 66), (213, 94, 0), (0, 114, 178)  # label, prediction, hit

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: apt-get install chromium")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Results with a comparison."""
    root = tmp_path_factory.mktemp("report")
    truth = make_truth(SIZE, seed=4)
    scene = make_scene(root / "raw", SIZE, truth=truth)
    make_dataset(root / "processed", scene, truth)
    for name, skill in (("a weak one", 0.2), ('the "strong" <one>', 0.8)):
        folder = root / "results/predictions" / name.split()[1].strip('"')
        make_product(folder, scene, make_probability(truth, skill=skill), experiment=name)
        evaluate(
            predictions=folder, ground_truth=root / "processed", experiment=name,
            output=root / "results/metrics" / f"{folder.name}.json",
        )  # fmt: skip
    scores = {"from_scratch": (0.2, 0.3, 0.6), "pretrained": (0.3, 0.5, 0.61)}
    write_tables(root / "results", make_comparison(scores, name="a_comparison_with_a_long_name"))
    page = root / "report.html"
    visualize(
        results=root / "results", ground_truth=root / "processed", scenes=root / "raw", output=root / "figures",
        report=page,
    )  # fmt: skip
    return page


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield running
        running.close()


@pytest.fixture
def open_report(browser, report):
    """Opens the report and checks at the end that it loaded nothing and logged no error."""
    contexts, requests, faults = [], [], []

    def opened(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(report.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []
    assert [url for url in requests if url != report.as_uri() and not url.startswith("data:")] == []
    assert requests.count(report.as_uri()) == len(contexts)


def _seen(page, colour):
    """Share of a colour in the left and in the right half of the map."""
    with Image.open(io.BytesIO(page.locator("#map-layers").screenshot())) as shot:
        near = (np.abs(np.asarray(shot.convert("RGB")).astype(int) - colour) < 12).all(axis=-1)
    middle = near.shape[1] // 2
    return near[:, : middle - 4].mean().round(3), near[:, middle + 4 :].mean().round(3)


def test_the_watch_on_requests_and_the_console_sees_something(browser, report, tmp_path):
    broken = report.read_text(encoding="utf-8").replace(
        "</main>", '<img src="https://example.com/a.png" alt=""></main>'
    )
    (tmp_path / "broken.html").write_text(broken, encoding="utf-8")
    said = []
    page = browser.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.goto((tmp_path / "broken.html").as_uri())
    assert any("Content Security Policy" in text for text in said)
    page.close()


def test_which_model_to_use_stands_in_the_first_screen_and_is_a_key_away(open_report):
    page = open_report(viewport={"width": 1280, "height": 900})
    verdict = page.locator("#choice .verdict")
    assert verdict.inner_text().startswith("Use pretrained: it is better than from_scratch")
    box = verdict.bounding_box()
    assert box["y"] + box["height"] < 900
    links = page.get_by_role("navigation").get_by_role("link")
    assert links.first.inner_text() == "Which model?"
    links.first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#choice"
    curve = page.locator("#comparison img")
    curve.scroll_into_view_if_needed()
    assert curve.evaluate("image => image.complete && image.naturalWidth > 100")


def test_a_mouse_drags_the_map_and_zooming_keeps_its_middle(open_report):
    _drag_and_zoom(open_report())


def _drag_and_zoom(page):
    page.get_by_label("Zoom").select_option("4")
    view = page.locator(".viewport")
    middle = "one => (one.scrollLeft + one.clientWidth / 2) / one.scrollWidth"
    assert view.evaluate(middle) == pytest.approx(0.5, abs=0.01)
    view.scroll_into_view_if_needed()
    box, before = view.bounding_box(), view.evaluate("one => one.scrollLeft")
    mouse = getattr(page, "mouse", None) or page.page.mouse  # a frame has its page's
    mouse.move(box["x"] + 200, box["y"] + 100)
    mouse.down()
    mouse.move(box["x"] + 80, box["y"] + 70, steps=4)
    mouse.up()
    assert view.evaluate("one => one.scrollLeft") == pytest.approx(before + 120, abs=2)
    mouse.move(box["x"] + 300, box["y"] + 100)  # let go
    assert view.evaluate("one => one.scrollLeft") == pytest.approx(before + 120, abs=2)
    at = view.evaluate(middle)
    page.get_by_label("Zoom").select_option("8")
    assert view.evaluate(middle) == pytest.approx(at, abs=0.01)


def test_the_map_of_a_notebook_can_be_panned_without_a_network(browser, report):
    root = report.parent
    dataset, scene = open_dataset(root / "processed"), find_scenes(root / "raw")[0]
    context, requests, faults = browser.new_context(), [], []
    page = context.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.set_content(pannable_map(scene=scene, dataset=dataset)._repr_html_())
    frame = page.frames[1]
    frame.get_by_label("Darken").check()
    assert frame.locator("#map-state").inner_text() == "Left of the line: label. Right of it: only imagery."
    assert frame.get_by_label("Prediction", exact=True).count() == 0
    _drag_and_zoom(frame)
    assert faults == []
    assert [url for url in requests if not url.startswith(("data:", "about:"))] == []
    context.close()


def test_layers_toggle(open_report):
    page = open_report()
    left, right = _seen(page, VERMILION)
    assert left > 0.03
    assert right == 0
    left, right = _seen(page, YELLOW)
    assert left == 0
    assert right > 0.03
    page.get_by_label("Prediction", exact=True).uncheck()
    assert _seen(page, VERMILION) == (0, 0)
    left, right = _seen(page, YELLOW)  # the label is the topmost now
    assert left > 0.03
    assert right == 0
    page.get_by_label("Error", exact=True).check()
    left, right = _seen(page, BLUE)
    assert left > 0.03
    assert right == 0
    assert page.locator("#map-state").inner_text() == "Left of the line: error. Right of it: label."
    page.get_by_label("Error", exact=True).uncheck()
    page.get_by_label("Label", exact=True).uncheck()
    assert page.locator("#map-line").is_hidden()
    assert page.locator("#map-state").inner_text() == "Only imagery."


def test_the_best_model_is_shown_first_and_another_can_be_chosen(open_report):
    page = open_report()
    model = page.locator("#map-model")
    assert model.input_value() == 'the "strong" <one>'
    page.get_by_label("Error", exact=True).check()
    page.get_by_label("Swipe").fill("100")
    hits = sum(_seen(page, BLUE))
    model.select_option("a weak one")
    assert sum(_seen(page, BLUE)) < hits
    assert page.locator("[data-layer=error]:visible").count() == 1


def test_test_ground_stays_bright_when_the_rest_is_darkened(open_report):
    page = open_report()
    for layer in ("Label", "Prediction"):
        page.get_by_label(layer, exact=True).uncheck()

    def brightness():
        with Image.open(io.BytesIO(page.locator("#map-layers").screenshot())) as shot:
            grey = np.asarray(shot.convert("L")).astype(float)
        columns = grey.shape[1]
        return grey[:, : columns // 2].mean(), grey[
            :, columns * 230 // 256 : columns * 250 // 256
        ].mean()  # train, test

    train, test = brightness()
    page.get_by_label("Darken").check()
    darkened, same = brightness()
    assert darkened < 0.6 * train
    assert same == pytest.approx(test, rel=0.1)


def test_swipe_and_layers_by_keyboard(open_report):
    page = open_report()
    page.get_by_label("Error", exact=True).focus()
    page.keyboard.press("Space")
    assert page.get_by_label("Error", exact=True).is_checked()
    swipe = page.get_by_label("Swipe")
    swipe.focus()
    page.keyboard.press("End")
    assert min(_seen(page, BLUE)) > 0.03
    page.keyboard.press("Home")
    assert _seen(page, BLUE) == (0, 0)
    page.keyboard.press("ArrowRight")
    assert swipe.input_value() == "1"
    assert page.locator("#map-line").evaluate("line => line.style.left") == "1%"


def test_every_control_is_reached_by_tab(open_report):
    page = open_report()
    page.locator("#map-model").focus()
    reached = ["map-model"]
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == ["map-model", "map-label", "map-prediction", "map-error", "map-shade", "map-zoom", "map-swipe"]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Map of")


def test_a_phone_swipes_by_touch_and_scrolls_only_what_is_zoomed(open_report):
    page = open_report(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, device_scale_factor=2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    swipe = page.get_by_label("Swipe")
    swipe.scroll_into_view_if_needed()
    box = swipe.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2)
    assert 10 <= int(swipe.input_value()) <= 30
    assert page.locator("#map-line").evaluate("line => line.style.left") == f"{swipe.input_value()}%"
    page.get_by_label("Zoom").select_option("4")
    viewport = page.locator(".viewport")
    assert viewport.evaluate("one => one.scrollWidth / one.clientWidth") == pytest.approx(4, rel=0.02)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_paper_has_the_map_and_no_controls(open_report):
    page = open_report()
    page.get_by_label("Zoom").select_option("8")
    page.emulate_media(media="print")
    assert page.locator("#map-controls").is_hidden()
    assert page.locator(".legend").is_visible()
    assert page.locator("#choice .verdict").is_visible()
    tables = page.locator("#choice .scroll, #comparison .scroll")
    assert tables.count() == 3
    for table in tables.all():
        assert table.evaluate("one => getComputedStyle(one).overflowX") == "visible"
    map_, viewport = page.locator("#map-layers").bounding_box(), page.locator(".viewport").bounding_box()
    assert map_["width"] == pytest.approx(viewport["width"], abs=2)
    assert page.pdf()[:5] == b"%PDF-"


def test_without_scripts_label_and_prediction_are_shown(open_report):
    page = open_report(java_script_enabled=False)
    assert page.locator("#map-controls").is_hidden()
    assert [layer.get_attribute("data-layer") for layer in page.locator("[data-layer]:visible").all()] == [
        "label",
        "prediction",
    ]
