"""The service in threads of the test, on a loopback port; its jobs are a few lines of Python."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from helpers.paths import CONFIGS
from terraseg.serve.assemble import Settings, serving
from terraseg.serve.client import Client
from terraseg.serve.jobs.runner import Command

FACTS: dict[str, Any] = {
    "images": {"train": 8, "val": 2, "test": 2},
    "labelled": True,
    "bands": ["B02", "B03", "B04", "B8A", "B11", "B12"],
    "unit": "reflectance_1e-4",
    "gsd": 10,
    "crs": ["EPSG:32631"],
    "sizes": [[64, 64]],
    "label_values": [0, 1],
}
"""Of a folder that can be trained on."""


def python(code: str) -> Command:
    """Work that is a few lines of Python, with ``request``, ``say(name, value)`` for JSON files, and ``end()``."""
    begin = (
        "import json, os, signal, subprocess, sys, time; from pathlib import Path; folder = Path(sys.argv[1])\n"
        "request = json.loads((folder / 'request.json').read_text())\n"
        "def say(name, value):\n new = folder / 'new'\n new.write_text(json.dumps(value))\n"
        " new.replace(folder / name)\n"
        "def stage(name):\n say('stage.json', {'status': name})\n"
        "def end(error=None, **result):\n say('result.json', {'error': error, 'result': result})\n"
    )
    return lambda folder: [sys.executable, "-c", begin + code, str(folder)]


SLEEPS = python("stage('FINE_TUNING'); (folder / 'pid').write_text(str(os.getpid())); time.sleep(60)")


@contextmanager
def service(root: Path, command: Command = SLEEPS, *, api_key: str | None = None, **settings: Any) -> Iterator[Client]:
    """A service that runs while the block does, and its client."""
    given = Settings(root, CONFIGS, root / "weights", command=command, **settings)
    with serving(given) as url, Client(api_key, url, retries=0) as client:
        yield client


def raw(client: Client, api_key: str | None = None) -> httpx.Client:
    """Plain HTTP to the same service."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.Client(base_url=client._transport.url, headers=headers, timeout=60, trust_env=False)


def new_dataset(client: Client, content: bytes = b"II*\0 and more", **facts: Any) -> str:
    """A dataset of four files whose content nothing reads."""
    from hashlib import sha256

    digest = sha256(content).hexdigest()
    paths = [f"{split}/{kind}/a.tif" for split in ("train", "val", "test") for kind in ("input", "ground_truth")]
    files = [{"path": path, "size": len(content), "sha256": digest} for path in paths]
    answer = client._transport.post("/datasets", {"name": "made", "facts": {**FACTS, **facts}, "files": files})
    if answer["missing"]:
        with raw(client) as http:
            http.headers.update(client._transport._http.headers)
            http.put(f"/api/datasets/{answer['id']}/files/{digest}", content=content).raise_for_status()
    return str(answer["id"])


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something that must happen."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
