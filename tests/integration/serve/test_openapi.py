"""schemathesis on a live service: every answer is one of the OpenAPI document's, none is a failure, and none says
where the files of the service are.
"""

import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from helpers.services import new_dataset, python, service
from terraseg.serve import auth
from terraseg.serve.start import add_key

SCHEMATHESIS = shutil.which("schemathesis") or shutil.which("st")

EXCLUDED = (
    "positive_data_acceptance",  # which bands and paths there are is no matter of types
    "allow_header_conformance",  # Starlette names the methods of one route, not of all with this path
    "use_after_free",  # the ids that are given are deleted again and again
)


@pytest.mark.skipif(not SCHEMATHESIS, reason="no schemathesis on the PATH: `uv tool install schemathesis`")
def test_every_answer_is_one_of_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, tried = tmp_path / "hidden_root", tmp_path / "tried"
    tried.mkdir()
    monkeypatch.setattr(auth, "_FAILURES", 10**9)  # it tries many wrong keys
    key = add_key("ada", root=root)
    with service(root, python("end()"), api_key=key, rate=10**9, most_jobs=10**6) as client:
        dataset = new_dataset(client)
        model = client.fine_tune("demo_unet", dataset, {"weights": "random"}).wait(every=0.1)
        inference = client.start_inference(model.id, dataset).wait(every=0.1)
        given = {
            "/datasets/.dataset_id": dataset, "/models/.model_id": model.id, "/models/.job_id": model.id,
            "/inferences/.job_id": inference.id,
        }  # fmt: skip
        lines = []
        for path, each in given.items():
            name = path.partition(".")[2]
            lines += [
                "[[operations]]",
                f'include-path-regex = "{path}."',
                f'parameters = {{ "path.{name}" = "{each}" }}',
            ]
        (tried / "schemathesis.toml").write_text("\n".join(lines))
        done = subprocess.run(
            [
                str(SCHEMATHESIS), "--config-file", "schemathesis.toml", "run", f"{client._transport.url}/openapi.json",
                "-H", f"Authorization: Bearer {key}", "--checks", "all", "--exclude-checks", ",".join(EXCLUDED),
                "--exclude-method", "DELETE", "--phases", "coverage,fuzzing", "--max-examples", "10", "--seed", "0",
                "--no-shrink", "--warnings", "off", "--report-har-path", "all.har",
            ],
            cwd=tried, env={**os.environ, "no_proxy": "*"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    answers = (tried / "all.har").read_text(encoding="utf-8")
    assert model.id in answers
    for secret in ("hidden_root", "Traceback", key.split("_", 2)[2]):
        assert secret not in answers


def test_the_document_names_the_errors_and_the_key(tmp_path: Path) -> None:
    with service(tmp_path) as client:
        document = httpx.get(f"{client._transport.url}/openapi.json", trust_env=False).json()
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            assert {"401", "404", "409", "413", "422", "429", "503", "507"} <= set(route["responses"]), (method, path)
            assert route["security"], (method, path)
