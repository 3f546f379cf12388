"""Requests that the service accepts and errors that it raises, over real HTTP; no training."""

import errno
import io
import json
import socket
import tarfile
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from helpers.floods import OPTIONS, make_floods
from helpers.services import add_dataset, serving
from terraseg.cli import main
from terraseg.errors import ConfigError, DatasetError, OutputError, SceneError, ServiceError
from terraseg.serve.client import Client
from terraseg.serve.http_client import Transport, UnreachableError
from terraseg.serve.http_errors import DeniedError, NotThereError, TooLargeError, WrongStateError
from terraseg.serve.start import read_token
from terraseg.serve.store import Job, Store

TOKEN = "0123456789abcdef"  # noqa: S105
TIFF = b"II*\0" + bytes(60)


@pytest.fixture
def client(tmp_path):
    with serving(tmp_path / "root", max_upload=50_000) as client:
        yield client


def _ask(client: Client, method: str, path: str, **request):
    answer = httpx.request(method, client._transport.url + path, **request)
    return answer.status_code, answer.json() if answer.content else None


def _upload(client: Client, **asked) -> str:
    return "/uploads/" + _ask(client, "POST", "/uploads", json={"size": 0, **asked})[1]["id"]


def _raw(client: Client, request: str) -> str:
    """The first line of the answer to a request that no client would send."""
    parts = urlsplit(client._transport.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode())
        return connection.recv(4096).decode().splitlines()[0]


# --- who may ask ---


def test_every_question_needs_the_token(tmp_path):
    with serving(tmp_path / "root", token=TOKEN) as client:
        assert client.about()["service"] == "terraseg"
        url = client._transport.url
        for token, said in ((None, "the request has no token"), ("wrong" * 4, "the token is wrong")):
            with Client(url, token=token, retries=0) as stranger:
                for ask in (stranger.about, stranger.recipes, stranger.jobs, stranger.datasets):
                    with pytest.raises(DeniedError, match=said):
                        ask()
        for path in ("/no-such-path", "/jobs/x/log"):
            assert httpx.get(url + path).status_code == 401


def test_web_pages_may_not_ask(client):
    status, answer = _ask(client, "POST", "/jobs", json={}, headers={"Origin": "https://example.org"})
    assert (status, answer["error"]["kind"]) == (401, "DeniedError")
    status, answer = _ask(client, "GET", "/jobs", headers={"Host": "rebound.example.org"})
    assert (status, answer["error"]["found"]) == (401, "the request is for host 'rebound.example.org'")


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (TOKEN, 0o644, "token.*chmod 600"),
        ("short", 0o600, "token; expected at least 16 characters"),
        ("two words and more", 0o600, "at least 16 characters"),
        ("", 0o600, "at least 16 characters"),
    ],
)
def test_a_token_that_protects_nothing_is_refused(tmp_path, content, mode, message):
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=message):
        read_token(path)


def test_a_token_is_the_files_line(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    assert read_token(path) == TOKEN
    with pytest.raises(ConfigError, match="no token file at"):
        read_token(tmp_path / "none")


def test_other_machines_are_not_served_without_a_token(tmp_path, capsys):
    assert main(["serve", "--root", str(tmp_path / "root"), "--host", "0.0.0.0"]) == 2  # noqa: S104
    said = " ".join(capsys.readouterr().err.split())
    assert "--host 0.0.0.0 without a token" in said
    assert "add --token-file" in said
    assert not (tmp_path / "root").exists()


# --- uploads ---


@pytest.mark.parametrize(
    "path",
    [
        "..%2f..%2fevil.tif", "images/..%2fevil.tif", "%2fetc%2fevil.tif", "images/.hidden.tif", "images%5cevil.tif",
        "images//evil.tif", "images/%00.tif", f"images/{'x' * 300}.tif", "images/a.tif/..%2f..%2fb.tif",
    ],
)  # fmt: skip
def test_no_file_is_written_outside_of_its_upload(client, tmp_path, path):
    upload = _upload(client)
    line = _raw(client, f"PUT {upload}/files/{path} HTTP/1.1\nHost: 127.0.0.1\nContent-Length: 4\n\nII*\0")
    assert line.split()[1] in ("400", "404", "422")
    assert list(tmp_path.rglob("*.tif")) == []


@pytest.mark.parametrize(
    ("name", "content", "status", "said"),
    [
        ("images/a.txt", TIFF, 422, "images/a.txt"),
        ("images/a.tif", b"<VRTDataset><SourceFilename>/etc/passwd", 422, "images/a.tif"),
        ("images/a.tif", b"", 422, "images/a.tif"),
        ("images/a.tif", TIFF + bytes(60_000), 413, "the upload is larger"),
    ],
)
def test_what_is_no_geotiff_or_too_large_is_refused_and_not_kept(client, tmp_path, name, content, status, said):
    answer = _ask(client, "PUT", f"{_upload(client)}/files/{name}", content=content)
    assert (answer[0], said in answer[1]["error"]["found"]) == (status, True)
    assert {each.name for each in (tmp_path / "root/uploads").rglob("*") if each.is_file()} == {"request.json"}


def test_a_full_disk_is_one_line(client, monkeypatch):
    async def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    upload = _upload(client)
    monkeypatch.setattr("terraseg.serve.api.receive", full)
    status, answer = _ask(client, "PUT", f"{upload}/files/a.tif", content=TIFF)
    assert (status, answer["error"]["kind"]) == (507, "OutputError")
    assert answer["error"]["found"].startswith("no space left while writing")


def test_a_stream_without_a_length_ends_at_the_limit(client, tmp_path):
    upload = _upload(client)
    answer = httpx.put(f"{client._transport.url}{upload}/files/images/a.tif", content=iter([TIFF] * 1000))
    assert answer.status_code == 413
    assert list((tmp_path / "root").rglob("*.tif*")) == []


def test_the_limit_is_of_the_upload_and_a_file_sent_again_replaces_itself(client):
    upload = _upload(client)
    for name, status in (("a", 201), ("a", 201), ("b", 413), ("a", 201)):
        assert _ask(client, "PUT", f"{upload}/files/images/{name}.tif", content=TIFF + bytes(30_000))[0] == status


def test_an_upload_that_will_be_too_large_is_refused_before_it_begins(tmp_path, client):
    folder = make_floods(tmp_path / "floods", rows=2, columns=2)
    with pytest.raises(TooLargeError, match="an upload of .* GB; expected at most 5e-05 GB; .*--max-upload-gb"):
        client.upload(folder, **OPTIONS)
    assert list((tmp_path / "root/uploads").iterdir()) == []


def _tar(*entries: tuple[str, bytes | None], kind: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=kind) as tar:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content or b""))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["w", "w:gz"])
def test_a_tar_is_unpacked_and_says_what_it_left_out(client, tmp_path, kind):
    upload = _upload(client)
    entries = [("./images/a.tif", TIFF), ("masks/a.TIF", TIFF), ("readme.txt", b"x")]
    status, answer = _ask(client, "PUT", f"{upload}/archive", content=_tar(*entries, kind=kind))
    assert (status, answer) == (201, {"files": 2, "left_out": ["readme.txt"]})
    files = tmp_path / "root" / upload[1:] / "files"
    assert {path.relative_to(files).as_posix() for path in files.rglob("*.*")} == {"images/a.tif", "masks/a.TIF"}


@pytest.mark.parametrize(
    ("archive", "status", "said"),
    [
        (_tar(("../evil.tif", TIFF)), 422, "'../evil.tif'"),
        (_tar(("/evil.tif", TIFF)), 422, "'/evil.tif'"),
        (_tar(("images/a.tif", None)), 422, "images/a.tif"),
        (_tar(("images/a.tif", TIFF))[:700], 422, "tar"),
        (b"II*\0" * 500, 422, "tar"),
        (_tar(("a.tif", TIFF + bytes(10**6)), kind="w:gz"), 413, "the upload is larger"),
        (_tar(("a.tif", b"no TIFF")), 422, "a.tif"),
    ],
    ids=["above", "absolute", "link", "cut", "no tar", "bomb", "content"],
)
def test_a_tar_that_leads_elsewhere_or_lies_is_refused(client, tmp_path, archive, status, said):
    answer = _ask(client, "PUT", f"{_upload(client)}/archive", content=archive)
    assert (answer[0], said in answer[1]["error"]["found"]) == (status, True)
    assert list(tmp_path.rglob("*evil*")) == []


def test_an_upload_that_was_given_up_is_gone(client, tmp_path):
    upload = _upload(client)
    assert _ask(client, "DELETE", upload)[0] == 204
    assert list((tmp_path / "root/uploads").iterdir()) == []
    for method, path in (("DELETE", ""), ("POST", "/import"), ("PUT", "/files/a.tif")):
        status, answer = _ask(client, method, upload + path)
        assert (status, answer["error"]["kind"]) == (404, "NotThereError")


def test_a_client_that_fails_during_its_upload_deletes_it(client, tmp_path, monkeypatch):
    folder = make_floods(tmp_path / "floods", rows=1, columns=1, side=8)
    (folder / "masks" / "c0_0.tif").write_bytes(b"not a TIFF")
    with pytest.raises(SceneError, match=r"masks/c0_0\.tif"):
        client.upload(folder, **OPTIONS)
    assert list((tmp_path / "root/uploads").iterdir()) == []

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Transport, "send", fails)
    with pytest.raises(KeyboardInterrupt):
        client.upload(folder, **OPTIONS)
    assert list((tmp_path / "root/uploads").iterdir()) == []


def test_folders_without_images_are_refused_before_anything_is_sent(tmp_path):
    with pytest.raises(DatasetError, match="no GeoTIFF in"):
        Client("http://127.0.0.1:9").upload(tmp_path)


@pytest.mark.parametrize(
    ("layout", "sent"),
    [
        (["images/a.tif", "masks/a.tif"], ("images", "masks", ["images/a.tif", "masks/a.tif"])),
        (["a_S2.tif", "a_L.tif"], ("images", "images", ["images/a_L.tif", "images/a_S2.tif"])),
        (
            ["train/input/a.tif", "train/ground_truth/a.tif"],
            ("images", None, ["images/train/ground_truth/a.tif", "images/train/input/a.tif"]),
        ),
    ],
    ids=["two folders", "side by side", "split"],
)
def test_the_layouts_of_the_import_are_sent_as_they_are(client, tmp_path, monkeypatch, layout, sent):
    for name in [*layout, ".cache/x.tif", "readme.txt"]:
        (tmp_path / "floods" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "floods" / name).write_bytes(TIFF)
    asked = []
    post = Transport.post

    def kept(self, path, value=None, *, patient=False):
        asked.append((path, value))
        if path.endswith("/import"):
            folder = tmp_path / "root" / path.removesuffix("/import")[1:]
            asked.append(json.loads((folder / "request.json").read_text()))
            asked.append(sorted(each.relative_to(folder / "files").as_posix() for each in folder.rglob("*.tif")))
            return {"id": "x"}
        return post(self, path, value, patient=patient)

    monkeypatch.setattr(Transport, "post", kept)
    client.upload(tmp_path / "floods", unit="reflectance")
    request, files = asked[-2:]
    assert (request["images"], request["masks"], files) == sent
    assert request["options"]["unit"] == "reflectance"
    assert (request["name"], request["size"]) == ("floods", 128)


# --- jobs ---


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"recipe": "demo_unet", "dataset": "none"}, NotThereError, "no dataset 'none'"),
        ({"recipe": "nope"}, NotThereError, "no recipe 'nope'; expected one of .*baseline_unet"),
        ({"recipe": "demo_unet", "steps": 1}, ConfigError, "steps: Input should be greater"),
        ({"recipe": "demo_unet", "positive": "flood"}, ConfigError, "no class 'flood'; expected .*building"),
        ({"recipe": "demo_unet", "bands": ["B77"]}, SceneError, "unknown band 'B77'"),
        ({"recipe": "demo_unet", "weights": "none.pt"}, ConfigError, "weights.*'none.pt'"),
    ],
)
def test_a_training_that_can_not_be_is_refused_at_once(client, tmp_path, asked, error, message):
    dataset = add_dataset(tmp_path / "root")
    with pytest.raises(error, match=message):
        client.finetune(**{"dataset": dataset, **asked})
    assert client.jobs() == []


def test_unknown_jobs_paths_and_bodies_are_one_line(client):
    for ask in (client.job, client.dataset):
        with pytest.raises(NotThereError, match="no (job|dataset) 'x'"):
            ask("x")
    assert _ask(client, "GET", "/no/such")[1]["error"]["kind"] == "NotThereError"
    status, answer = _ask(client, "PATCH", "/jobs")
    assert (status, answer["error"]["found"]) == (405, "PATCH /jobs: Method Not Allowed")
    for body in (b"{", b'{"item": {"eo:cloud_cover": NaN}}', b"[" * 100_000):
        status, answer = _ask(client, "POST", "/jobs", content=body)
        assert (status, answer["error"]["kind"]) == (422, "ConfigError")
        assert answer["error"]["found"].startswith("the body of POST /jobs")


def test_datasets_are_listed_described_and_deleted(client, tmp_path):
    name = add_dataset(tmp_path / "root")
    (dataset,) = client.datasets()
    assert dataset.id == name
    assert dataset.answer["classes"] == ["background", "building"]
    assert dataset.answer["chips"] == {"train": 8, "val": 2, "test": 2}
    assert client.dataset(name).answer == dataset.answer
    dataset.delete()
    assert client.datasets() == []


def _trained(root: Path, state: str = "succeeded") -> Job:
    store = Store(root)
    config = {"trainer": {"default_root_dir": str(root / "x")}, "model": {"init_args": {"weights": "hub"}}}
    request = {"kind": "train", "dataset": "made-1", "import": {"unit": "reflectance"}}
    job = store.move(store.add_job(store.new_job_id(), request, config=config), "running")
    return job if state == "running" else store.move(job, state)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "files", "status", "said"),
    [
        ({"job": "none"}, 1, 404, "no job 'none'"),
        ({"upload": "none"}, 1, 404, "no upload 'none'"),
        ({}, 0, 422, " 0 files"),
        ({}, 2, 422, " 2 files"),
        ({"date": None}, 1, 422, "date: an image without a STAC item needs its date, YYYY-MM-DD"),
        ({"date": "yesterday"}, 1, 422, "date: Input should be a valid date"),
        ({"threshold": 1.5}, 1, 422, "threshold: Input should be less than 1"),
    ],
)
def test_a_map_that_can_not_be_is_refused_at_once(client, tmp_path, changes, files, status, said):
    of = _trained(tmp_path / "root")
    upload = _upload(client)
    for number in range(files):
        _ask(client, "PUT", f"{upload}/files/{number}.tif", content=TIFF)
    asked = {"kind": "predict", "job": of.id, "upload": upload.rpartition("/")[2], "date": "2019-09-17", **changes}
    answer = _ask(client, "POST", "/jobs", json=asked)
    assert answer[0] == status
    assert said in answer[1]["error"]["found"]
    assert len(client.jobs()) == 1


@pytest.mark.parametrize("state", ["running", "failed", "cancelled"])
def test_a_training_without_a_model_maps_nothing_and_keeps_no_upload(client, tmp_path, state):
    job = client.job(_trained(tmp_path / "root", state).id)
    (tmp_path / "flood.tif").write_bytes(TIFF)
    with pytest.raises(WrongStateError, match=f"is {state}; expected .*train.* succeeded"):
        job.predict(tmp_path / "flood.tif", tmp_path / "maps", date="2019-09-17")
    assert list((tmp_path / "root/uploads").iterdir()) == []
    (tmp_path / "maps/flood").mkdir(parents=True)
    (tmp_path / "maps/flood/mine.txt").touch()
    with pytest.raises(OutputError, match="flood holds other files"):
        job.predict(tmp_path / "flood.tif", tmp_path / "maps", date="2019-09-17")
    with pytest.raises(SceneError, match="no image at"):
        job.predict(tmp_path / "none.tif", tmp_path / "maps", date="2019-09-17")
    (tmp_path / "flood.json").write_text("{no item")
    with pytest.raises(SceneError, match=r"flood\.json .* expected the STAC item"):
        job.predict(tmp_path / "flood.tif", tmp_path / "elsewhere")


# --- the client where the network or the service fails ---


def test_questions_are_asked_again_and_orders_are_not(monkeypatch):
    monkeypatch.setattr("terraseg.serve.http_client._PAUSE", 0.001)
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        if len(asked) == 1:
            raise httpx.ConnectError("refused", request=request)
        if len(asked) == 2:
            return httpx.Response(503)
        return httpx.Response(200, json={"service": "terraseg"})

    client = Client("http://127.0.0.1:9", retries=2)
    client._transport._http = httpx.Client(base_url="http://127.0.0.1:9", transport=httpx.MockTransport(answer))
    assert client.about() == {"service": "terraseg"}
    assert asked == ["GET"] * 3
    asked.clear()
    with pytest.raises(UnreachableError, match=r"http://127\.0\.0\.1:9 can't be reached \(refused\); .*terraseg serve"):
        client.finetune("d", recipe="r")
    assert asked == ["POST"]


def test_a_service_that_is_another_is_said():
    client = Client("http://127.0.0.1:9", retries=0)
    other = httpx.MockTransport(lambda _: httpx.Response(500, html="<h1>no</h1>"))
    client._transport._http = httpx.Client(base_url="http://127.0.0.1:9", transport=other)
    with pytest.raises(ServiceError, match="answers 500 Internal Server Error; expected .*terraseg"):
        client.jobs()
    with pytest.raises(ConfigError, match="the service's address is 'gpu-box:8765'"):
        Client("gpu-box:8765")


def _folder_of(archive: bytes) -> Client:
    client = Client("http://127.0.0.1:9", retries=0)
    sends = httpx.MockTransport(lambda _: httpx.Response(200, content=archive))
    client._transport._http = httpx.Client(base_url="http://127.0.0.1:9", transport=sends)
    return client


def test_a_downloaded_folder_replaces_its_like_and_nothing_else(tmp_path):
    transport = _folder_of(_tar(("bundle.json", b"new"), ("a/b.bin", b"x")))._transport
    for _ in range(2):
        transport.download_folder("/x", tmp_path / "bundle", mark="bundle.json")
    assert (tmp_path / "bundle/a/b.bin").read_bytes() == b"x"
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == ["a", "bundle.json"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/work.txt").touch()
    with pytest.raises(OutputError, match="mine holds other files"):
        transport.download_folder("/x", tmp_path / "mine", mark="bundle.json")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_service_can_not_write_outside_of_the_folder(tmp_path):
    transport = _folder_of(_tar(("../evil", b"x")))._transport
    with pytest.raises(ServiceError, match="the service sent '../evil'"):
        transport.download_folder("/x", tmp_path / "bundle", mark="bundle.json")
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_is_not_over_has_no_result(client, tmp_path):
    root = tmp_path / "root"
    store = Store(root)
    name = store.new_job_id()
    config = {"trainer": {"default_root_dir": str(root / "x")}, "model": {"init_args": {"weights": "random"}}}
    store.move(store.add_job(name, {"kind": "train"}, config=config), "running")
    job = client.job(name)
    assert (job.state, job.weights, job.pretrained) == ("running", "random", False)
    assert "weights: random" in repr(job)
    with pytest.raises(WrongStateError, match="is running; expected succeeded"):
        _ = job.metrics
    with pytest.raises(WrongStateError, match="is running; expected .*train.* succeeded.* bundle"):
        job.download_bundle(tmp_path / "bundle")
    with pytest.raises(NotThereError, match=r"has no metrics of split 'test' \(it is running\)"):
        job.full_metrics()
    with pytest.raises(WrongStateError, match="is running after 0 s"):
        job.wait(timeout=0, every=0.01)
    assert job.log() == ""
    assert not Path(tmp_path / "bundle").exists()
