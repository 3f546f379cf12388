"""Uploads: only what is missing is sent, cuts are resumed, and nothing else than the agreed TIFFs is kept."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.floods import make_tutorial_floods
from helpers.services import FACTS, new_dataset, raw, service
from terraseg.errors import ConfigError, DatasetError, SceneError
from terraseg.serve import start
from terraseg.serve.client import Client
from terraseg.serve.http_errors import LimitError, TooLargeError, WrongStateError

_CONTENT = b"II*\0" + bytes(range(200))
_HASH = sha256(_CONTENT).hexdigest()


def _offer(**changes: Any) -> dict[str, Any]:
    file = {"path": "test/input/a.tif", "size": len(_CONTENT), "sha256": _HASH, **changes}
    return {"name": "made", "facts": {**FACTS, "labelled": False}, "files": [file]}


def _put(http: httpx.Client, name: str, content: bytes, offset: int = 0, digest: str = _HASH) -> httpx.Response:
    return http.put(f"/api/datasets/{name}/files/{digest}?offset={offset}", content=content)


def _patient(client: Client) -> Client:
    return Client(base_url=client._transport.url, retries=4)


def test_an_upload_goes_on_from_the_byte_where_it_was_cut(tmp_path: Path) -> None:
    with service(tmp_path) as client, raw(client) as http:
        name = client._transport.post("/datasets", _offer())["id"]
        for start_, end in ((0, 1), (1, 3), (3, 100), (100, 203)):
            assert _put(http, name, _CONTENT[start_:end], start_).json()["offset"] == end
            (need,) = client.get_dataset(name).answer["missing"]
            assert need == {"sha256": _HASH, "size": 204, "offset": end}
        assert _put(http, name, b"again", 7).status_code == 409
        assert _put(http, name, _CONTENT[203:], 203).json() is None
        assert client.get_dataset(name).status == "READY"
        assert (tmp_path / "artefacts/files/local" / _HASH).read_bytes() == _CONTENT
        assert client._transport.post("/datasets", _offer())["missing"] == [], "the same file is not sent twice"
    with service(tmp_path) as client:
        assert client.get_dataset(name).status == "READY"


def test_a_connection_that_is_cut_keeps_what_arrived(tmp_path: Path) -> None:
    def cut() -> Any:
        yield _CONTENT[:77]
        raise ConnectionError

    with service(tmp_path) as client, raw(client) as http:
        name = client._transport.post("/datasets", _offer())["id"]
        with pytest.raises(ConnectionError):
            http.put(f"/api/datasets/{name}/files/{_HASH}", content=cut())
        (tmp_path / "a.tif").write_bytes(_CONTENT)
        with _patient(client) as patient:
            patient._send(name, client.get_dataset(name).answer["missing"][0], tmp_path / "a.tif")
        assert client.get_dataset(name).status == "READY"


def test_bytes_that_are_written_after_the_client_has_asked_are_not_sent_again(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(_CONTENT)
    with service(tmp_path) as client, raw(client) as http:
        name = client._transport.post("/datasets", _offer())["id"]
        (early,) = client.get_dataset(name).answer["missing"]
        assert _put(http, name, _CONTENT[:77], 0).json()["offset"] == 77
        with _patient(client) as patient:
            patient._send(name, early, tmp_path / "a.tif")
        assert client.get_dataset(name).status == "READY"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (_CONTENT + b"x", 413),
        (b"II*\0" + bytes(200), 422),
        (b"<VRTDataset>" + bytes(192), 422),
    ],
    ids=["longer than offered", "other bytes", "a VRT"],
)
def test_other_bytes_than_the_offered_ones_are_not_kept(tmp_path: Path, content: bytes, status: int) -> None:
    with service(tmp_path) as client, raw(client) as http:
        name = client._transport.post("/datasets", _offer())["id"]
        assert _put(http, name, content).status_code == status
        assert client.get_dataset(name).status == "UPLOADING"
        assert not (tmp_path / "artefacts/files").exists()
        with pytest.raises(WrongStateError, match="1 files of dataset"):
            client.fine_tune("demo_unet", name)


@pytest.mark.parametrize(
    "changes",
    [
        {"path": path}
        for path in (
            "../a.tif", "test/input/../../a.tif", "/etc/a.tif", "test/input/.a.tif", "test/input/a.vrt", "test/a.tif",
            "test/input/b/a.tif", "test\\input\\a.tif", "test/input/a\0.tif", "test/input/" + "a" * 200 + ".tif",
        )
    ]
    + [{"size": -1}, {"size": 1}, {"size": 1 << 50}, {"sha256": "../../x"}, {"colour": 1}],
)  # fmt: skip
def test_offers_that_can_not_be_are_errors(tmp_path: Path, changes: dict[str, Any]) -> None:
    with service(tmp_path) as client, pytest.raises(ConfigError, match=next(iter(changes))):
        client._transport.post("/datasets", _offer(**changes))


def test_a_user_has_a_quota_of_bytes_and_of_jobs(tmp_path: Path) -> None:
    with service(tmp_path, max_upload=1000, quota=1500, most_jobs=2) as client:
        with pytest.raises(TooLargeError, match="one dataset"):
            client._transport.post("/datasets", _offer(size=1001))
        new_dataset(client, b"II*\0" + b"a" * 900)
        with pytest.raises(TooLargeError, match="one user"):
            new_dataset(client, b"II*\0" + b"b" * 900)
        dataset = new_dataset(client, b"II*\0" + b"c" * 90)
        for _ in range(2):
            client.fine_tune("demo_unet", dataset, {"weights": "random"})
        with pytest.raises(LimitError, match="2 jobs are not finished"):
            client.fine_tune("demo_unet", dataset, {"weights": "random"})
        with pytest.raises(WrongStateError, match="needs the dataset"):
            client.delete_dataset(dataset)


def test_deleting_and_cleaning_leave_no_files(tmp_path: Path) -> None:
    with service(tmp_path) as client:
        first, second = new_dataset(client), new_dataset(client)
        client.delete_dataset(first)
        assert client.get_dataset(second).status == "READY", "its files are still needed"
        client.delete_dataset(second)
        assert client.list_datasets() == []
        assert [path for path in (tmp_path / "artefacts").rglob("*") if path.is_file()] == []
        kept = new_dataset(client)
        for orphan in ("artefacts/files/local/abc", "artefacts/jobs/model-1/bundle.tar.gz", "work/model-1/log.txt"):
            (tmp_path / orphan).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / orphan).touch()
        assert len(start.clean(root=tmp_path)) == 3
        assert start.clean(root=tmp_path) == []
        assert client.get_dataset(kept).status == "READY"


def test_requests_that_are_too_long_or_no_json_are_errors(tmp_path: Path) -> None:
    with service(tmp_path) as client, raw(client) as http:
        for body in (b"", b"{", b"[]", b'{"name": NaN}', b"[" * 100_000, b"\xff"):
            answer = http.post("/api/datasets", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (400, 422)
            assert answer.json()["error"]["found"]
        chunks = (bytes(1 << 20) for _ in range(70))
        assert http.post("/api/datasets", content=chunks).status_code in (400, 413)


def test_nothing_is_sent_of_a_folder_that_is_wrong(tmp_path: Path) -> None:
    folder = make_tutorial_floods(tmp_path / "floods", images=1)
    next((folder / "val/ground_truth").iterdir()).unlink()
    (folder / "val/ground_truth/other.tif").write_bytes(b"II*\0")
    with pytest.raises(DatasetError, match="no partner"):
        Client(base_url="http://127.0.0.1:9").create_dataset(base_dir=folder, name="floods")
    with pytest.raises(SceneError, match="no image at"):
        Client(base_url="http://127.0.0.1:9").start_inference("model-1", paths=[tmp_path / "none.tif"])
