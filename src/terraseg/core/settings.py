"""Checked settings: unknown keys are errors, and one message names every fault of a file."""

from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError


class Strict(BaseModel):
    """Base of every settings and metadata class: it allows no unknown keys and is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler, /) -> dict[str, Any]:  # noqa: ANN401
        """The schema, which an editor shows, with the words of the docstring for the class and its keys."""
        from docstring_parser import parse

        schema = handler.resolve_ref_schema(handler(core_schema))
        words = parse(cls.__doc__ or "")
        schema["description"] = words.short_description
        for key in words.params:
            if key.arg_name in schema.get("properties", {}):
                schema["properties"][key.arg_name]["description"] = " ".join((key.description or "").split())
        return schema


def faults_of(error: ValidationError) -> str:
    """All faults of a `Strict` model as ``key: message``, joined by semicolons."""
    return "; ".join(
        ": ".join(
            [
                *filter(None, [".".join(map(str, fault["loc"]))]),
                "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, "),
            ]
        )
        for fault in error.errors()
    )
