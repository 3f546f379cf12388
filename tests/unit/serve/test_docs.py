"""docs/service.md and the README say what the service is."""

import re
from pathlib import Path
from unittest.mock import create_autospec

from helpers.paths import CONFIGS, ROOT
from terraseg.serve.app import create_app
from terraseg.serve.assemble import Settings, assemble
from terraseg.serve.client import Client
from terraseg.serve.schema import InferenceMetadata, TrainingMetadata, checked


def _page() -> str:
    return (ROOT / "docs/service.md").read_text(encoding="utf-8")


def test_the_table_of_requests_is_that_of_the_routes(tmp_path: Path) -> None:
    service, _ = assemble(Settings(tmp_path, CONFIGS, tmp_path))
    paths = create_app(service).openapi()["paths"]
    named = re.compile(r"{(\w+)}")
    routes = {
        f"{method.upper()} {named.sub(lambda name: 'SHA256' if name[1] == 'sha256' else 'ID', path)}"
        for path, methods in paths.items()
        for method in methods
    }
    table = _page().partition("## HTTP")[2].partition("\n## ")[0]
    named_there = {each.partition("?")[0] for each in re.findall(r"`((?:GET|PUT|POST|DELETE) /[^` ]*)`", table)}
    inferences = {
        each.replace("models", "inferences") for each in named_there if "models" in each and "base_models" not in each
    }
    assert (
        named_there | {each for each in inferences if each.rpartition("/")[2] not in ("bundle", "host", "map")}
        == routes
    )


def test_the_tables_of_metadata_have_all_keys() -> None:
    tables = _page().partition("## metadata")[2].partition("\n## ")[0].split("| key of ")[1:]
    for table, model in zip(tables, (TrainingMetadata, InferenceMetadata), strict=True):
        rows = [line.split("|")[1] for line in table.splitlines()[2:] if line.startswith("|")]
        assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == set(model.model_fields)


def test_the_readmes_example_is_taken_by_the_sdk() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "Client(" in block)
    client = create_autospec(Client, instance=True)
    exec(code, {"Client": lambda base_url: client if base_url.startswith("http") else None})  # noqa: S102
    asked = client.fine_tune.call_args.kwargs
    assert checked(TrainingMetadata, asked["metadata"]).epochs == 50
    assert (CONFIGS / f"{asked['base_model']}.yaml").is_file()
