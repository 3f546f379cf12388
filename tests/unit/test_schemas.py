"""Configs name a schema, so that editors complete and check their keys; the schemas are those of the code."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from helpers.paths import CONFIGS
from helpers.schemas import FOLDER, MODELS, schema_text

_TRAINED = re.compile(r"^(model|trainer):", re.MULTILINE)
_FILES = [path for path in sorted(CONFIGS.glob("*.yaml")) if not _TRAINED.search(path.read_text(encoding="utf-8"))]


def test_schemas_are_current() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(MODELS)
    for name, model in MODELS.items():
        assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == schema_text(model), (
            "run `python tests/helpers/schemas.py`"
        )


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_a_config_agrees_with_the_schema_that_it_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = re.match(r"# yaml-language-server: \$schema=(schemas/\w+\.json)\n", text)
    assert named, "its first line names no schema"
    schema = yaml.safe_load((CONFIGS / named[1]).read_text(encoding="utf-8"))
    values = json.loads(json.dumps(yaml.safe_load(text), default=str))  # an editor reads a date as text
    jsonschema.validate(values, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values, "unknown_key": 1}, schema)
