"""The JSON schemas that editors check configs with: `python tests/helpers/schemas.py` writes them anew."""

import json
from pathlib import Path

from pydantic import BaseModel

from terraseg.api.config import DataConfig
from terraseg.comparison.matrix import MatrixConfig
from terraseg.learn.tune.space import Search

FOLDER = Path(__file__).parents[2] / "configs" / "schemas"
MODELS: dict[str, type[BaseModel]] = {"data": DataConfig, "comparison": MatrixConfig, "search": Search}


def schema_text(model: type[BaseModel]) -> str:
    return json.dumps(model.model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, model in MODELS.items():
        (FOLDER / f"{name}.json").write_text(schema_text(model), encoding="utf-8")
