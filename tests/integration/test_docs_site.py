"""The documentation site builds strictly without network, and its pages load nothing from elsewhere."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from helpers.paths import ROOT

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "http_proxy": NOWHERE, "https_proxy": NOWHERE, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def _pages(nav):
    for entry in nav:
        for target in entry.values():
            yield from [target] if isinstance(target, str) else _pages(target)


def test_every_page_of_the_menu_is_built_and_every_page_is_in_the_menu(site):
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = list(_pages(settings["nav"]))
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    for page in pages:
        assert (site / ("" if page == "index.md" else page.removesuffix(".md")) / "index.html").is_file()


def test_pages_load_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]* rel="(?:stylesheet|preconnect|icon)"[^>]*>', text)
        assert len(loaded) > 2
        assert [source for source in loaded if "//" in source] == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?https?:", sheet.read_text(encoding="utf-8"))


def test_the_tutorial_holds_the_readmes_commands_and_the_reference_the_docstrings(site):
    tutorial = re.sub(r"<[^>]+>", "", (site / "tutorial/index.html").read_text(encoding="utf-8"))
    assert "terratorch fit --config configs/demo_unet.yaml" in tutorial
    assert "--8&lt;--" not in tutorial
    reference = (site / "reference/index.html").read_text(encoding="utf-8")
    for name in ("api.prepare.preprocess", "api.assess.evaluate", "contracts.dataset.open_dataset", "errors"):
        assert f'id="terraseg.{name}"' in reference
