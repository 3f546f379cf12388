"""A run of the mapping in a process of its own, which the tests kill: scene, output, seconds a batch, largest file."""

import resource
import signal
import sys
from pathlib import Path

from helpers.predictors import NumpyPredictor, from_neighbours
from terraseg.contracts.scene import open_scene
from terraseg.errors import TerrasegError
from terraseg.mapping.scene import predict_scene

OPTIONS = {"crop": 32, "overlap": 8, "batch_size": 3, "threshold": 0.5}

if __name__ == "__main__":
    scene, output, delay, largest = sys.argv[1:]
    if int(largest):  # what a full disk looks like: a write that fails half-way
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), int(largest)))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    try:
        predict_scene(open_scene(scene), NumpyPredictor(from_neighbours, delay=float(delay)), Path(output), **OPTIONS)
    except TerrasegError as error:
        sys.exit(f"error: {error}")
