"""The public API: light to import, documented, and the only way that notebooks, docs, the demo and jobs take."""

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docstring_parser import parse

import terraseg
from helpers.paths import ROOT
from terraseg.cli import VERBS

_HEAVY = ("torch", "lightning", "terratorch", "rasterio", "pandas")


@pytest.mark.parametrize(
    "code",
    [
        "import terraseg",
        "from terraseg.cli import main; main(['--version'])",
        "from terraseg.cli import build_parser; build_parser()",
    ],
)
def test_what_answers_at_once_imports_nothing_heavy(code: str) -> None:
    listed = f"print([n for n in {_HEAVY} if n in sys.modules])"
    check = f"import contextlib, sys\nwith contextlib.suppress(SystemExit):\n    {code}\n{listed}"
    said = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "[]"


def test_rooms_do_not_hide_the_functions_of_the_api() -> None:
    code = (
        "import importlib, pkgutil, terraseg\n"
        "for found in pkgutil.iter_modules(terraseg.__path__): importlib.import_module(f'terraseg.{found.name}')\n"
        "print([n for n in terraseg.__all__ if type(getattr(terraseg, n)).__name__ == 'module'])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(terraseg.__all__))
def test_each_name_is_documented(name: str) -> None:
    found = getattr(terraseg, name)
    text = parse(inspect.getdoc(found) or "")
    assert text.short_description
    if inspect.isfunction(found):
        parameters = inspect.signature(found).parameters
        assert {each.arg_name for each in text.params} in (set(parameters), set())
        assert all(each.annotation is not inspect.Parameter.empty for each in parameters.values())


@pytest.mark.parametrize("path", sorted(set(VERBS.values())))
def test_steps_take_options_by_keyword_alone(path: str) -> None:
    module, _, name = path.partition(":")
    function = getattr(__import__(f"terraseg.{module}", fromlist=[name]), name)
    kinds = [each.kind for each in inspect.signature(function).parameters.values()]
    assert kinds[1:] == [inspect.Parameter.KEYWORD_ONLY] * len(kinds[1:])


def _python() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path.name, "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
        yield path.name, "\n".join(blocks)
    for path in (
        ROOT / "src" / "terraseg" / "sample" / "demo.py",
        ROOT / "src" / "terraseg" / "serve" / "jobs" / "job_process.py",
    ):
        yield path.name, path.read_text(encoding="utf-8")


_ALLOWED = {  # class paths of the experiments' YAML files, and what is no step: files, errors, the service itself
    "terraseg.learn.datamodule", "terraseg.learn.task", "terraseg.learn.callbacks", "terraseg.learn.freeze",
    "terraseg.core.files", "terraseg.errors", "terraseg.contracts.splits",
    "terraseg.serve.http_errors", "terraseg.serve.store", "terraseg.serve.schema", "terraseg.serve.jobs.folder",
    "terraseg.serve.jobs.recipes", "terraseg.serve.jobs.maps", "terraseg.serve.jobs.scores",
    "terraseg.serve.jobs.preview",
}  # fmt: skip


@pytest.mark.parametrize(("where", "code"), [pytest.param(*each, id=each[0]) for each in _python()])
def test_what_users_read_uses_the_public_api_and_nothing_deeper(where: str, code: str) -> None:
    code = re.sub(r"^\s*[%!].*$", "", code, flags=re.MULTILINE)
    deep = {
        node.module
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("terraseg.")
    }
    assert deep <= _ALLOWED, where
    names = {
        node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "terraseg"
    }
    assert names <= {*terraseg.__all__, "__version__"}


def test_the_list_of_names_is_the_stub() -> None:
    stub = (Path(terraseg.__file__).with_suffix(".pyi")).read_text(encoding="utf-8")
    assert set(re.findall(r"import (\w+) as \1", stub)) == set(terraseg.__all__)
