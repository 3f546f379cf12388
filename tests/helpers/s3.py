"""An empty S3-compatible store for a test: moto's server, which must be installed apart (its boto3 needs an older
python-dateutil than our lock has): `uv tool install "moto[server]"`.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

MOTO = shutil.which("moto_server")


@contextmanager
def s3_store() -> Iterator[str]:
    """Its address, for `terraseg serve --artefacts`; credentials are in the environment while the block runs."""
    assert MOTO
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    host, port = place.split(":")
    server = subprocess.Popen([MOTO, "-H", host, "-p", port], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = dict(os.environ)
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    try:
        while True:
            try:
                httpx.put(f"http://{place}/bucket", trust_env=False, timeout=60).raise_for_status()
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        yield f"s3://bucket/terraseg?scheme=http&endpoint_override={place}&region=us-east-1"
    finally:
        os.environ.clear()
        os.environ |= before
        server.kill()
        server.wait()
