"""Every command that the documents show is one that a test runs, or that the parser takes."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from helpers.paths import ROOT
from terraseg import __version__
from terraseg.cli import parse_arguments
from terraseg.sample.demo import steps

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_RUN_BY_TESTS = {step.command for step in steps()}  # tests/integration/test_demo.py


def _commands():
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if command := re.sub(r"\s+#.*$", "", line).strip():
                    yield pytest.param(" ".join(command.split()), id=f"{page.name}: {command[:60]}")


@pytest.mark.parametrize("command", list(_commands()))
def test_command(command):
    if command in _RUN_BY_TESTS:
        return
    words = shlex.split(command)
    if words[0] == "docker":  # no test has Docker: what runs in the image is a command as any other
        words = [] if words[1] == "build" else words[words.index("terraseg") + 1 :]
        if not words:
            assert (ROOT / "Dockerfile").is_file()
            return
    if words[0] == "torchrun":
        options = get_args_parser().parse_args(words[1:])
        assert options.module
        words = [options.training_script, *options.training_script_args]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif words[0] == "terratorch":
        assert words[1] in ("fit", "test", "predict")
        for word, value in pairwise(words):  # tests/unit/test_learn_configs.py builds them
            assert word != "--config" or (ROOT / value).is_file()
        assert "--config" in words
    else:
        verb = words[1:] if words[0] == "terraseg" else [Path(words[1]).stem, *words[2:]]
        options = parse_arguments([str(word) for word in verb])
        for name in ("aoi", "config"):
            path = getattr(options, name, None)
            assert path is None or str(path).startswith(("data/", "my")) or (ROOT / path).is_file()


def test_the_citation_and_the_list_of_changes_know_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == __version__
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
