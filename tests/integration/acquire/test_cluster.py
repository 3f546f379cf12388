"""A composite on a real Dask scheduler whose workers are separate processes."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely

from helpers.clusters import dask_cluster
from terraseg.acquire.config import AcquireConfig
from terraseg.api.acquire import download
from terraseg.errors import ConfigError
from terraseg.sample.city.make import make_city
from terraseg.sample.servers import stac_server


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    city = make_city(tmp_path / "city", size=192, dates=2, cloud=0.2)
    aoi = tmp_path / "town.geojson"
    box = shapely.box(*city.geobox.boundingbox).buffer(-2)
    gpd.GeoDataFrame(geometry=[box], crs=str(city.geobox.crs)).to_crs(4326).to_file(aoi)
    with stac_server(tmp_path / "city") as server:
        config = AcquireConfig.model_validate(
            {
                "catalogue": {"name": "earth-search", "url": server.url},
                "periods": {"all": {"start": "2020-01-01", "end": "2024-01-01"}},
                "bands": ["B02", "B8A"],
                "max_cloud_cover": 100,
                "block": 64,
                "backoff": 0.01,
            }
        )
        (local,) = download(aoi=aoi, output=tmp_path / "local", config=config)
        server.faults.delay = 0.1
        with dask_cluster(2) as (address, workers):

            def kill_one_in_the_middle() -> None:
                while not list(tmp_path.glob("cluster/.*.blocks/*.npz")):
                    time.sleep(0.02)
                os.kill(workers[0].pid, signal.SIGKILL)

            threading.Thread(target=kill_one_in_the_middle, daemon=True).start()
            (path,) = download(aoi=aoi, output=tmp_path / "cluster", config=config, scheduler=address)
            assert workers[0].wait(5) == -signal.SIGKILL
            assert workers[1].poll() is None
    assert np.array_equal(_pixels(path), _pixels(local))


def _pixels(path: Path) -> np.ndarray[Any, Any]:
    with rasterio.open(path) as source:
        return source.read()


def test_a_missing_scheduler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from terraseg.core.machine import parallel

    monkeypatch.setattr(parallel, "_CONNECT_TIMEOUT", "1s")
    with pytest.raises(ConfigError, match="tcp://127.0.0.1:9"):
        list(parallel.run_tasks(str, [1, 2], workers=1, scheduler="tcp://127.0.0.1:9"))
