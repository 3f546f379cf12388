"""Who may do what: keys, other users' things, web pages, and how often one may ask."""

from pathlib import Path

import pytest
from sqlalchemy import text

from helpers.services import new_dataset, raw, service, until
from terraseg.errors import ConfigError
from terraseg.serve import start
from terraseg.serve.assemble import Settings
from terraseg.serve.auth import add_key, list_keys, revoke_key
from terraseg.serve.client import Client
from terraseg.serve.database import Database
from terraseg.serve.http_errors import DeniedError, LimitError, NotThereError


def _database(root: Path) -> Database:
    root.mkdir(exist_ok=True)
    return Database(Settings(root, root, root).database_url)


def test_a_key_is_stored_as_a_hash_and_works_until_it_is_revoked(tmp_path: Path) -> None:
    database = _database(tmp_path)
    key = add_key(database, "ada")
    with database.reading() as session:
        assert key.rpartition("_")[2] not in str(session.execute(text("select * from keys")).all())
    with service(tmp_path, api_key=key) as client:
        assert client.about()["user"] == "ada"
        for wrong in (None, key[:-1], f"{key}x", "ts_", "nonsense", "ts_\0_x"):
            given = wrong if wrong and wrong.isprintable() else None
            with Client(given, client._transport.url) as other, pytest.raises(DeniedError):
                other.about()
        (known,) = list_keys(database)
        revoke_key(database, known.id)
        until(lambda: _is_denied(client))
        # A new one works at once.
        with Client(add_key(database, "ada"), client._transport.url) as other:
            assert other.about()["user"] == "ada"


def _is_denied(client: Client) -> bool:
    try:
        client.about()
    except DeniedError:
        return True
    return False


def test_the_command_line_handles_keys(tmp_path: Path) -> None:
    root = tmp_path / "service"
    key = start.add_key("ada", root=root)
    ((name, user, _, revoked),) = start.list_keys(root=root)
    assert (user, revoked, key.startswith(f"ts_{name}_")) == ("ada", "", True)
    start.revoke_key(name, root=root)
    assert start.list_keys(root=root)[0][3]
    with pytest.raises(NotThereError, match="keys list"):
        start.revoke_key("other", root=root)
    with pytest.raises(ConfigError, match="no service in"):
        start.list_keys(root=tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="user's name"):
        start.add_key("../ada", root=root)


def test_other_users_things_are_not_there(tmp_path: Path) -> None:
    database = _database(tmp_path)
    ada, bob = add_key(database, "ada"), add_key(database, "bob")
    with service(tmp_path, api_key=ada) as client, raw(client, bob) as http:
        dataset = new_dataset(client)
        model = client.fine_tune("demo_unet", dataset, {"weights": "random"})
        paths = {f"/api/datasets/{dataset}": ("GET", "DELETE")}
        for kind in ("models", "inferences"):
            paths[f"/api/{kind}/{model.id}"] = ("GET", "DELETE")
            for end, method in (("log", "GET"), ("cancel", "POST"), ("bundle", "GET"), ("results", "GET")):
                paths[f"/api/{kind}/{model.id}/{end}"] = (method,)
        for path, methods in paths.items():
            for method in methods:
                answer = http.request(method, path)
                assert (answer.status_code, "ada" in answer.text) == (404, False), path
        asked = {"base_model": "demo_unet", "dataset_id": dataset}
        assert http.post("/api/models", json=asked).status_code == 404
        asked = {"model_id": model.id, "dataset_id": dataset}
        assert http.post("/api/inferences", json=asked).status_code == 404
        assert http.get("/api/models").json() == http.get("/api/datasets").json() == []
        assert client.get_model_status(model.id).status != "NOT_FOUND"
        with Client(bob, client._transport.url) as other:
            assert other.get_model_status(model.id).status == "NOT_FOUND"
            # The same bytes have to be sent: a hash alone must not give the file of somebody else.
            assert other._transport.get("/datasets") == []
            assert new_dataset(other) != dataset
        client.cancel(model.id)


def test_a_service_without_keys_is_for_this_machine_alone(tmp_path: Path) -> None:
    with service(tmp_path) as client, raw(client) as http:
        assert client.about()["user"] == "local"
        for headers in ({"Host": "evil.example:8765"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
            assert http.get("/api/about", headers=headers).status_code == 401
        start.add_key("ada", root=tmp_path)
        until(lambda: _is_denied(client))


def test_another_address_needs_keys(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    with pytest.raises(ConfigError, match="without API keys.*keys add"):
        start.serve(root=tmp_path / "service", host="0.0.0.0", recipes=tmp_path / "configs")  # noqa: S104


def test_guessing_keys_and_asking_too_often_have_an_end(tmp_path: Path) -> None:
    key = add_key(_database(tmp_path), "ada")
    with service(tmp_path, api_key=key, rate=30) as client, raw(client, "ts_a_b") as http:
        codes = [http.get("/api/about").status_code for _ in range(25)]
        assert codes == [401] * 20 + [429] * 5
    with service(tmp_path, api_key=key, rate=30) as client:
        for _ in range(30):
            client.about()
        with pytest.raises(LimitError, match="more than 30 requests"):
            client.about()
