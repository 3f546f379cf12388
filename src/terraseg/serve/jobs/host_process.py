"""The process that keeps models warm: `python -m terraseg.serve.jobs.host_process`.

It reads a line of JSON from standard input for each request, and writes a line with the answer. The least recently used
models leave memory when all together are larger than the limit.
"""

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from terraseg.contracts.bundle import open_bundle
from terraseg.errors import cause_of
from terraseg.serve.http_errors import Fault
from terraseg.serve.jobs.folder import check_files
from terraseg.serve.jobs.maps import Mapper


class Warm:
    """Models in memory, the least recently used first.

    Args:
        limit: most bytes of their weights; the model in use is kept in any case.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._models: OrderedDict[str, tuple[Mapper, int]] = OrderedDict()

    def mapper(self, bundle: str) -> Mapper:
        """A model, from memory or loaded now.

        Raises:
            CheckpointError: the bundle is damaged.
        """
        if bundle not in self._models:
            opened = open_bundle(bundle)
            size = opened.weights.stat().st_size
            while self._models and size + sum(each for _, each in self._models.values()) > self._limit:
                self._models.popitem(last=False)
            self._models[bundle] = (Mapper(opened), size)
        self._models.move_to_end(bundle)
        return self._models[bundle][0]

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load a model, forget it, or map an image with it; names the models that are in memory then."""
        fault = None
        try:
            if "forget" in request:
                self._models.pop(request["forget"], None)
            else:
                mapper = self.mapper(request["bundle"])
                if "image" in request:
                    image = Path(request["image"])
                    said = {**request["said"], "num_frames": mapper.frames}
                    facts = check_files({"test/input/image.tif": image}, **said)
                    mapper.map(image, Path(request["output"]), facts)
        except Exception as error:
            mendable = cause_of(error)
            if mendable is None:
                raise
            fault = Fault.of(mendable).json()
        return {"error": fault, "warm": list(self._models)}


@contextmanager
def _answers() -> Iterator[Any]:
    """Standard output for the answers alone: what libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        yield answers


def main(limit: int) -> None:
    """Answer requests until standard input ends, which it does with the service."""
    warm = Warm(limit)
    with _answers() as answers:
        for line in sys.stdin:
            print(json.dumps(warm.answer(json.loads(line))), file=answers, flush=True)  # the protocol


if __name__ == "__main__":
    main(int(sys.argv[1]))
