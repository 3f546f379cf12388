"""Run the notebooks where `make demo` has run, and keep their outputs: `python tests/helpers/notebooks.py`.

Maps to drag are left out, because they need scripts that pages of a repository don't run, and pictures are made small.
"""

import base64
import io
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

from helpers.paths import ROOT


def kept(output: dict[str, Any]) -> bool:
    """Whether an output is worth its bytes: no warnings of libraries, no interactive map."""
    return output.get("name") != "stderr" and "<iframe" not in "".join(output.get("data", {}).get("text/html", ""))


def small(picture: str) -> str:
    """A PNG in base64 with 128 colours."""
    colours = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").quantize(128)
    file = io.BytesIO()
    colours.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(path.parent)}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if kept(output)]
                for output in cell.outputs:
                    if "image/png" in output.get("data", {}):
                        output.data["image/png"] = small(output.data["image/png"])
        nbformat.write(notebook, path)
