"""A published data set arrives whole, whatever the server does on the way, and is then imported."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

import terraseg
from helpers.floods import SEN1FLOODS11_SPLITS, make_sen1floods11
from terraseg.acquire.published import PublishedFiles
from terraseg.cli import main
from terraseg.errors import CatalogueError, DatasetError
from terraseg.sample.servers import StacServer, stac_server

_LIST = "v1.1/splits/flood_handlabeled/flood_train_data.csv"
_CHIP = f"v1.1/data/flood_events/HandLabeled/S2Hand/{SEN1FLOODS11_SPLITS['train'][0]}_S2Hand.tif"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StacServer]:
    make_sen1floods11(tmp_path / "there")
    with stac_server(tmp_path / "there") as running:
        yield running


@pytest.fixture
def login_page() -> Iterator[str]:
    """Address of a server that asks for a login, whatever is wanted."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<html>Please log in</html>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_sen1floods11_is_downloaded_and_imported(server: StacServer, tmp_path: Path) -> None:
    output, url = tmp_path / "here", f"{server.url}/data/v1.1"
    assert main(["data", "sen1floods11", "--output", str(output), "--url", url]) == 0
    there = {path.relative_to(tmp_path / "there/v1.1"): path for path in (tmp_path / "there").rglob("*.*")}
    here = {path.relative_to(output): path for path in output.rglob("*.*")}
    assert {name: path.read_bytes() for name, path in here.items()} == {
        name: path.read_bytes() for name, path in there.items() if path.is_file()
    }
    before = len(server.requests)
    terraseg.sen1floods11(output=output, url=url)
    assert len(server.requests) == before, "nothing is downloaded twice"
    dataset = terraseg.import_folders(images=output, output=tmp_path / "floods")
    assert len(dataset.tiles) == sum(len(chips) for name, chips in SEN1FLOODS11_SPLITS.items() if name != "bolivia")


def test_a_cut_file_is_asked_for_again(server: StacServer, tmp_path: Path) -> None:
    server.faults.truncated = 2
    server.faults.pixels = [503, 429]
    with PublishedFiles(f"{server.url}/data", tmp_path / "here", retries=4, pause=0.01) as published:
        path = published.fetch(_CHIP)
    assert path.read_bytes() == (tmp_path / "there" / _CHIP).read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_no_part_of_a_file_counts_as_the_file(server: StacServer, tmp_path: Path) -> None:
    server.faults.truncated = 1
    with PublishedFiles(f"{server.url}/data", tmp_path / "here", retries=0) as published:
        with pytest.raises(CatalogueError):
            published.fetch(_CHIP)
        assert not list((tmp_path / "here").rglob("*.tif"))
        assert published.fetch(_CHIP).read_bytes() == (tmp_path / "there" / _CHIP).read_bytes()


def test_a_web_page_is_no_chip(tmp_path: Path, login_page: str) -> None:
    with PublishedFiles(login_page, tmp_path / "here") as published, pytest.raises(CatalogueError):
        published.fetch("a.tif")
    assert not list(tmp_path.rglob("*.tif"))


@pytest.mark.parametrize("address", ["{url}/nowhere", "http://127.0.0.1:9"])
def test_another_address_is_one_error_at_once(server: StacServer, tmp_path: Path, address: str) -> None:
    with pytest.raises(CatalogueError) as error:
        terraseg.sen1floods11(output=tmp_path / "here", url=address.format(url=server.url))
    assert "--url" in str(error.value)
    assert not list((tmp_path / "here").rglob("*.csv"))


def test_a_page_in_place_of_a_list_is_refused(server: StacServer, tmp_path: Path) -> None:
    (tmp_path / "there" / _LIST).write_text("<html>../../secret_LabelHand.tif</html>\n")
    with pytest.raises(DatasetError):
        terraseg.sen1floods11(output=tmp_path / "here", url=f"{server.url}/data/v1.1")
    assert not list((tmp_path / "here").rglob("*.tif"))
