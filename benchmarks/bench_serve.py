"""The bars of the service: `python benchmarks/bench_serve.py`.

Many clients on loopback upload small folders, start jobs (which only sleep) and poll, on SQLite and on PostgreSQL; what
can break does so at random instants; two machines share jobs; a warm model maps a chip. The last line is one JSON
object: a key a bar, with value, goal and ok.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from alone import bar

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

PATHS = [f"{split}/{kind}/a.tif" for split in ("train", "val", "test") for kind in ("input", "ground_truth")]
OVER = ("COMPLETED", "FAILED", "CANCELLED")


class Server:
    """A service in a process of its own, with jobs that sleep."""

    def __init__(
        self, root: Path, database: str = "", *, artefacts: str = "", slots: int = 4, seconds: float = 0.05,
        workers_only: bool = False,
    ) -> None:  # fmt: skip
        self.root, self._workers_only = root, workers_only
        self._more = [database, str(seconds), str(slots), artefacts]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/api"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        script = ROOT / "tests/helpers/service_process.py"
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
        self.process = subprocess.Popen(
            [sys.executable, script, str(self.root), "0" if self._workers_only else str(self._port), *self._more],
            env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not self._workers_only:
            try:
                httpx.get(f"{self.url}/about", trust_env=False).raise_for_status()
            except httpx.HTTPError:
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        """Kill it, as a lack of memory would."""
        self.process.kill()
        self.process.wait()

    def pids(self) -> list[int]:
        """Processes of its running jobs."""
        running = []
        for path in self.root.glob("work/*/pid"):
            with suppress(OSError, ValueError):  # it ends, or has not written its id yet
                pid = int(path.read_text())
                if str(path.parent) in Path(f"/proc/{pid}/cmdline").read_text():  # ids of killed ones may be others'
                    running.append(pid)
        return running

    def memory(self) -> int:
        """Bytes in main memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Measure, print a table and a line of JSON."""
    from helpers.postgres import POSTGRES, postgresql
    from helpers.s3 import MOTO

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kills", type=int, default=20)
    parts = ["load", "kills", "restarts", "cuts", "machines", "warm"]
    parser.add_argument("--only", choices=parts, nargs="+", default=parts)
    options = parser.parse_args()
    bars: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="terraseg-bench-") as temporary:
        folder = Path(temporary)
        for name in ("sqlite", "postgresql") if "load" in options.only else ():
            if name == "postgresql" and not POSTGRES:
                print("postgresql: not on this machine")
                continue
            with postgresql() if name == "postgresql" else nullcontext() as database:
                server = Server(folder / name / "root", database.url if database else "")
                bars |= _load(server, name, options.clients, options.seconds)
        for name, measure, can in (
            ("kills", _kills, True), ("restarts", _restarts, bool(POSTGRES)), ("cuts", _cuts, True),
            ("machines", lambda folder, _: _machines(folder), bool(POSTGRES and MOTO)),
        ):  # fmt: skip
            if name in options.only and can:
                bars |= measure(folder / name, options.kills)
            elif name in options.only:
                print(f"{name}: needs PostgreSQL" + " and moto_server" * (name == "machines"))
        if "warm" in options.only:
            bars |= _warm(folder / "warm")
    print(f"{'bar':<42}{'value':>12}{'goal':>12}")
    for name, each in bars.items():
        print(f"{name:<42}{each['value']:>12.3f}{each['goal']:>12}{'' if each['ok'] else '  MISSED'}")
    print(json.dumps(bars))


def _load(server: Server, name: str, clients: int, seconds: float) -> dict[str, dict[str, Any]]:
    calls: list[float] = []
    jobs: dict[str, int] = {}
    memory: list[int] = []
    rng = random.Random(0)  # noqa: S311

    async def client(http: httpx.AsyncClient, number: int, end: float) -> None:
        await asyncio.sleep(rng.uniform(0, seconds / 3))
        while time.monotonic() < end:
            seed = len(jobs)
            job = await _start(http, b"II*\0 made of " + f"{number} {seed}".encode(), seed)
            jobs[job] = seed
            while time.monotonic() < end:
                start = time.perf_counter()
                answer = await http.get(f"/models/{job}")
                calls.append(time.perf_counter() - start)
                if answer.raise_for_status().json()["status"] in OVER:
                    break
                await asyncio.sleep(2)  # as the SDK does
            await asyncio.sleep(rng.uniform(0, 10))

    async def watch(end: float) -> None:
        while time.monotonic() < end:
            memory.append(server.memory())
            await asyncio.sleep(1)

    async def run() -> None:
        end = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60, trust_env=False) as http:
            await asyncio.gather(watch(end), *(client(http, number, end) for number in range(clients)))

    try:
        asyncio.run(run())
        models = _until_over(server)
    finally:
        server.kill()
    lost = [job for job, seed in jobs.items() if models[job]["result"].get("metrics") != {"seed": seed}]
    p95 = statistics.quantiles(calls, n=20)[-1] * 1000
    half = len(memory) // 2
    growth = max(memory[half:]) / max(memory[:half])
    print(f"{name}: {len(jobs)} jobs, {len(calls)} status calls, median {statistics.median(calls) * 1000:.1f} ms")
    return {
        f"{name}_lost_jobs": bar(len(lost), 0),
        f"{name}_status_p95_ms": bar(p95, 50),
        f"{name}_memory_second_half_over_first": bar(growth, 1.1),
    }


async def _start(http: httpx.AsyncClient, content: bytes, seed: int) -> str:
    """Upload a folder with one file of content, and start a job."""
    from helpers.services import FACTS

    digest = sha256(content).hexdigest()
    files = [{"path": path, "size": len(content), "sha256": digest} for path in PATHS]
    made = await http.post("/datasets", json={"name": "made", "facts": FACTS, "files": files})
    dataset = made.raise_for_status().json()
    (await http.put(f"/datasets/{dataset['id']}/files/{digest}", content=content)).raise_for_status()
    asked = {"base_model": "demo_unet", "dataset_id": dataset["id"], "metadata": {"weights": "random", "seed": seed}}
    answer = await http.post("/models", json=asked)
    return str(answer.raise_for_status().json()["id"])


def _until_over(server: Server) -> dict[str, dict[str, Any]]:
    while True:
        try:
            models = httpx.get(f"{server.url}/models", timeout=60, trust_env=False).raise_for_status().json()
        except httpx.HTTPError:  # the database has just been started again
            models = [{"status": ""}]
        if all(model["status"] in OVER for model in models):
            return {model["id"]: model for model in models}
        time.sleep(1)


def _faults(name: str, server: Server, fault: Callable[[random.Random], None], count: int) -> dict[str, dict[str, Any]]:
    """Something breaks at random instants while a client starts jobs: each that was confirmed must end."""
    rng, jobs, before = random.Random(0), list[str](), set(_until_over(server))  # noqa: S311
    for done in range(count):
        end = time.monotonic() + rng.uniform(0.2, 2)
        while time.monotonic() < end:
            with suppress(httpx.HTTPError):  # not confirmed
                jobs.append(_start_now(server, len(jobs)))
        fault(rng)
        print(f"{name} {done + 1}: {len(jobs)} jobs", file=sys.stderr)
    models = {job: model for job, model in _until_over(server).items() if job not in before}
    right = [each["result"].get("metrics") == {"seed": each["metadata"]["seed"]} for each in models.values()]
    reasons = [bool(each["error"]) for each in models.values()]
    lost = len(set(jobs) - set(models)) + sum(not (one or other) for one, other in zip(right, reasons, strict=True))
    again = sum(each["attempts"] > 1 for each in models.values())
    print(f"{name}: {count} times, {len(models)} jobs, {again} started again, {sum(reasons)} FAILED with a reason")
    return {f"lost_jobs_{name}": bar(lost, 0)}


def _start_now(server: Server, seed: int) -> str:
    async def ask() -> str:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as http:
            return await _start(http, b"II*\0 made of " + str(seed).encode(), seed)

    return asyncio.run(ask())


def _kills(folder: Path, count: int) -> dict[str, dict[str, Any]]:
    """The server, another machine's workers, and processes of jobs, each killed `count` times."""
    server = Server(folder / "root", slots=1)  # so that the workers get most jobs
    workers = Server(folder / "workers", f"sqlite:///{folder}/root/terraseg.sqlite", workers_only=True, seconds=0.5)

    def restart(killed: Server) -> None:
        killed.kill()
        killed.start()

    def restart_workers(rng: random.Random) -> None:
        while workers.process.poll() is None and not workers.pids():
            _start_now(server, 0)
            time.sleep(0.2)
        time.sleep(rng.uniform(0, 0.4))
        restart(workers)

    def kill_job(rng: random.Random) -> None:
        while not (pids := workers.pids()):
            _start_now(server, 0)
            time.sleep(0.2)
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(rng.choice(pids), signal.SIGKILL)

    try:
        bars = _faults("after_kills_of_the_server", server, lambda _: restart(server), count)
        bars |= _faults("after_kills_of_workers", server, restart_workers, count)
        return bars | _faults("after_kills_of_job_processes", server, kill_job, count)
    finally:
        server.kill()
        workers.kill()


def _restarts(folder: Path, count: int) -> dict[str, dict[str, Any]]:
    """PostgreSQL is stopped as by a crash, and comes back."""
    from helpers.postgres import postgresql

    with postgresql() as database:
        server = Server(folder / "root", database.url)

        def restart(rng: random.Random) -> None:
            database.stop()
            time.sleep(rng.uniform(0, 1))
            database.start()

        try:
            return _faults("after_restarts_of_postgresql", server, restart, count)
        finally:
            server.kill()


def _cuts(folder: Path, count: int) -> dict[str, dict[str, Any]]:
    """Uploads whose connection is cut at a random byte, and which the SDK then goes on with."""
    from helpers.services import FACTS
    from terraseg.serve.client import Client

    server, rng, broken = Server(folder / "root"), random.Random(0), 0  # noqa: S311
    host, port = server.url.removeprefix("http://").removesuffix("/api").split(":")
    with Client(base_url=server.url.removesuffix("/api")) as client:
        for _ in range(count):
            content = b"II*\0" + rng.randbytes(5_000_000)
            (folder / "a.tif").write_bytes(content)
            digest, cut = sha256(content).hexdigest(), rng.randrange(len(content))
            files = [{"path": path, "size": len(content), "sha256": digest} for path in PATHS]
            asked = {"name": "cut", "facts": FACTS, "files": files}
            dataset = httpx.post(f"{server.url}/datasets", json=asked, trust_env=False).raise_for_status().json()["id"]
            head = f"PUT /api/datasets/{dataset}/files/{digest} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:cut])
            client._send(dataset, client.get_dataset(dataset).answer["missing"][0], folder / "a.tif")
            stored = (folder / "artefacts/files/local" / digest).read_bytes()
            broken += stored != content or client.get_dataset(dataset).status != "READY"
    server.kill()
    print(f"{count} uploads were cut")
    return {"broken_uploads_after_cuts": bar(broken, 0)}


def _machines(folder: Path, jobs: int = 40) -> dict[str, dict[str, Any]]:
    """Two machines with own folders, one PostgreSQL and one S3 store share jobs, and each is done once."""
    from sqlalchemy import create_engine, text

    from helpers.postgres import postgresql
    from helpers.s3 import s3_store

    with postgresql() as database, s3_store() as store:
        server = Server(folder / "one", database.url, artefacts=store, slots=2)
        other = Server(folder / "two", database.url, artefacts=store, slots=2, workers_only=True)
        try:
            while not (folder / "two/work").is_dir():
                time.sleep(0.1)
            seeds = {_start_now(server, seed): seed for seed in range(jobs)}
            models = _until_over(server)
            with create_engine(database.url).connect() as connection:
                rows = connection.execute(text("SELECT worker FROM jobs")).scalars().all()
        finally:
            server.kill()
            other.kill()
    shares = [sum(f"{folder / name}/" in row for row in rows) for name in ("one", "two")]
    once = [models[job]["attempts"] == 1 and models[job]["result"]["metrics"] == {"seed": seeds[job]} for job in seeds]
    print(f"two machines: {shares[0]} and {shares[1]} jobs")
    return {"two_machines_jobs_not_done_once": bar(jobs - sum(once), 0), "two_machines_idle": bar(shares.count(0), 0)}


def _warm(folder: Path) -> dict[str, dict[str, Any]]:
    """A 512 px chip through a warm model, against reading, the same forward passes, and writing."""
    import numpy as np
    import rasterio
    import torch
    import yaml

    from helpers.factories import make_info, write_geotiff
    from terraseg.contracts.bundle import write_bundle
    from terraseg.learn.models.build import build_model
    from terraseg.learn.models.load import weights_of
    from terraseg.serve.jobs.hosting import Host
    from terraseg.serve.jobs.job_process import BUNDLE
    from terraseg.serve.jobs.maps import Mapper
    from terraseg.serve.store import Store

    config = yaml.safe_load((ROOT / "configs/demo_unet.yaml").read_text(encoding="utf-8"))["model"]["init_args"]
    given = {key: config[key] for key in ("model_factory", "model_args")}
    info = make_info(**given, tile_size=224, classes={0: "land", 1: "water"})
    bundle = write_bundle(folder / "model", info=info, weights=weights_of(build_model(**given)), config="")
    store = Store(str(folder / "store"))
    subprocess.run(["tar", "-czf", folder / BUNDLE, "-C", folder, "model"], check=True)
    store.put(folder / BUNDLE, f"jobs/model/{BUNDLE}")
    image, place = folder / "chip.tif", rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000)
    write_geotiff(image, np.random.default_rng(0).integers(1, 3000, (13, 512, 512)).astype(np.int16), place)
    mapper = Mapper(bundle)
    windows = torch.rand(9, 6, 224, 224)  # as many as a chip has

    def bare() -> None:
        with rasterio.open(image) as source:
            source.read()
        with torch.inference_mode():
            for start in range(0, 9, 8):
                mapper._model(windows[start : start + 8])
        with rasterio.open(
            folder / "bare.tif", "w", driver="GTiff", count=1, height=512, width=512, dtype="uint8", compress="deflate",
            transform=place, crs=32631,
        ) as target:  # fmt: skip
            target.write(np.zeros((512, 512), np.uint8), 1)

    host = Host(store, folder / "hosted", limit=10**9)
    host.load("model")
    seconds: dict[str, list[float]] = {"bare": [], "warm": []}
    said = {"bands": None, "unit": None, "nodata": None}
    for turn in range(22):
        for name, act in (("bare", bare), ("warm", lambda: host.map("model", image, folder / "map.tif", said))):
            start = time.perf_counter()
            act()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    host.close()
    p50 = {name: statistics.median(each) for name, each in seconds.items()}
    print(f"512 px chip: {p50['warm']:.2f} s by the warm model, {p50['bare']:.2f} s bare")
    return {"warm_map_over_bare_forward": bar(p50["warm"] / p50["bare"], 1.5)}


if __name__ == "__main__":
    main()
