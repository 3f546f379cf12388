"""A service that can be killed: `python service_process.py ROOT PORT [DATABASE] [SECONDS] [SLOTS] [ARTEFACTS]`.

Its jobs only sleep for SECONDS, and then store a result.
"""

import sys
from functools import partial
from pathlib import Path

from helpers.paths import CONFIGS
from helpers.services import python
from terraseg.serve import assemble, start

JOB = """
stage('FINE_TUNING')
(folder / 'pid').write_text(str(os.getpid()))
time.sleep(SECONDS)
end(metrics={'seed': request['metadata']['seed']})
"""


def main(root: str, port: str, database: str = "", seconds: str = "0.2", slots: str = "2", artefacts: str = "") -> None:
    assemble.Settings = partial(  # type: ignore[misc,assignment]
        assemble.Settings, command=python(JOB.replace("SECONDS", seconds))
    )
    start.serve(
        root=root, port=int(port), recipes=CONFIGS, weights=Path(root), database=database or None, slots=int(slots),
        workers_only=port == "0", artefacts=artefacts or str(Path(root).parent / "artefacts"), quota_jobs=100_000,
        rate=10**9,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
