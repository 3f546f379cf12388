"""The web page of the service in a real browser: keyboard, phone, live progress, maps, and names with markup."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.services import FACTS, new_dataset, python, raw, service, until
from terraseg.serve import start
from terraseg.serve.client import Client

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: apt-get install chromium")

_SCORE = "{'value': 0.75, 'low': 0.5, 'high': 0.875, 'reason': ''}"
_NAME = "<img src=x onerror=alert(1)>"
_CODE = f"""
score = {_SCORE}
metrics = {{'test': {{'per_class_iou': {{'<b>water</b>': score}}, 'mean_iou': score, 'mean_accuracy': score}}}}
stage('FINE_TUNING' if request['kind'] == 'model' else 'RUNNING_INFERENCE')
if request['kind'] == 'inference':
    from PIL import Image
    root = Path(request['store']) / 'jobs' / request['id'] / 'previews'
    root.mkdir(parents=True)
    Image.new('RGB', (40, 40), (0, 90, 0)).save(root / '0-image.png')
    Image.new('RGBA', (40, 40), (230, 60, 60, 255)).save(root / '0-map.png')
    end(metrics=metrics, previews=[{_NAME!r}])
    sys.exit()
table = folder / 'outputs/demo_unet/metrics.csv'
table.parent.mkdir(parents=True, exist_ok=True)
for step in (10, 20, 30):
    rows = [f'{{n}},{{1 / n}},{{2 / n}}' for n in range(10, step + 1, 10)]
    table.write_text('step,train/loss,val/loss\\n' + '\\n'.join(rows) + '\\n')
    time.sleep(1)
while not (folder.parent / 'go').exists():
    time.sleep(0.1)
end(metrics=metrics)
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield running
        running.close()


def _opened(browser: Any, client: Client, faults: list[str], **options: Any) -> Any:
    page = browser.new_context(**options).new_page()
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.goto(client._transport.url)
    return page


def test_a_job_is_watched_and_its_maps_are_seen(tmp_path: Path, browser: Any) -> None:
    key, faults = start.add_key("ada", root=tmp_path), list[str]()
    with service(tmp_path, python(_CODE), api_key=key) as client:
        file = {"path": "test/input/a.tif", "size": 9, "sha256": "0" * 64}
        client._transport.post("/datasets", {"name": _NAME, "facts": FACTS, "files": [file]})
        dataset = new_dataset(client)
        model = client.fine_tune("demo_unet", dataset, {"weights": "random"})
        page = _opened(browser, client, faults, viewport={"width": 360, "height": 740})
        faults.clear()  # Chromium reports the 401 of the page with the login
        page.wait_for_function("document.activeElement instanceof HTMLInputElement")  # the field gets the focus
        page.keyboard.type(key)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"text={model.id}")
        assert page.get_by_text(_NAME).is_visible(), "markup is shown, not obeyed"
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for _ in range(8):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent") == model.id:
                break
        page.keyboard.press("Enter")
        page.wait_for_selector("polyline", timeout=20_000)
        page.wait_for_selector("text=step 30", timeout=20_000)
        assert page.locator("polyline").count() == 2
        assert page.get_by_role("button", name="Cancel").is_visible()
        (tmp_path / "work" / "go").touch()
        page.wait_for_selector("span.COMPLETED", timeout=20_000)
        page.reload()
        assert page.get_by_role("row", name="IoU of <b>water</b> 0.750 0.500 to 0.875").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        inference = client.start_inference(model.id, dataset).wait(every=0.1)
        page.goto(f"{client._transport.url}/inferences/{inference.id}")
        for picture in page.locator(".stack img").all():
            picture.scroll_into_view_if_needed()
            until(lambda picture=picture: picture.evaluate("one => one.naturalWidth") == 40)
        page.get_by_label("map over the image").focus()
        assert page.locator("img.map").is_visible()
        page.keyboard.press("Space")
        assert not page.locator("img.map").is_visible()
    assert faults == []


def test_a_wrong_key_and_another_users_job_show_nothing(tmp_path: Path, browser: Any) -> None:
    ada, bob = start.add_key("ada", root=tmp_path), start.add_key("bob", root=tmp_path)
    with service(tmp_path, api_key=ada) as client, raw(client) as http:
        model = client.fine_tune("demo_unet", new_dataset(client), {"weights": "random"})
        page = _opened(browser, client, [])
        page.get_by_label("API key").fill("ts_wrong_key")
        page.get_by_role("button", name="Log in").click()
        assert "wrong or revoked" in page.get_by_role("alert").inner_text()
        assert model.id not in http.get("/").text
        http.headers["Cookie"] = f"terraseg_key={bob}"
        assert http.get(f"/models/{model.id}").status_code == 404
        assert http.post(f"/models/{model.id}/cancel").status_code == 404
        assert http.get(f"/inferences/{model.id}/previews/0-map.png").status_code == 404
        http.headers["Cookie"] = f"terraseg_key={ada}"
        answer = http.post(f"/models/{model.id}/cancel", headers={"Origin": "https://evil.example"})
        assert answer.status_code == 401
        answer = http.get(f"/models/{model.id}")
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert http.get("/inferences/x/previews/..%2f..%2fsecret").status_code == 404
