"""A command line made from a function: its signature gives the options, its docstring their help."""

import argparse
import ast
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from docstring_parser import parse

from terraseg.errors import ConfigError

if TYPE_CHECKING:
    from terraseg.core.settings import Strict

StrPath: TypeAlias = str | Path


@dataclass(frozen=True)
class Option:
    """What the type of a parameter does not say of its option; for use in ``Annotated``.

    Attributes:
        group: heading in the help.
        one_of: options with the same name here exclude each other.
        required: one of ``one_of`` must be given.
        name: the option's name, if it differs from the parameter's.
        also: another name of the option.
        metavar: placeholder of the value; by default it shows the type.
        repeated: of a sequence: the option is given once for each value.
    """

    group: str = "options"
    one_of: str | None = None
    required: bool = False
    name: str | None = None
    also: str | None = None
    metavar: str | None = None
    repeated: bool = False


_PLACEHOLDERS: Mapping[Any, str] = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


def summary(path: str) -> str:
    """First line of a function's docstring, read without importing its module.

    Args:
        path: ``module:function``, below terraseg.
    """
    module, _, name = path.partition(":")
    source = Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    found = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name)
    return (ast.get_docstring(found) or "").split("\n")[0].removesuffix(".").replace("%", "%%")


def add_options(parser: argparse.ArgumentParser, function: Callable[..., Any]) -> None:
    """Add an option for each parameter of ``function``.

    A parameter that may be given by position becomes an argument, a bool a switch, a tuple one value with commas, a
    sequence several values, and a settings class one option for each of its fields.

    Args:
        parser: gets the options, and the docstring's text as its description.
        function: typed and documented in Google style.
    """
    parser.description = (parse(inspect.getdoc(function) or "").description or "").replace("`", "")
    groups: dict[str, Any] = {"options": parser}
    for parameter in inspect.signature(function).parameters.values():
        if model := _settings(parameter.annotation):
            helps = _helps(model)
            for name, field in model.model_fields.items():
                default = field.get_default(call_default_factory=True)
                _add(parser, groups, name, field.annotation, default=default, help_=helps[name])
        else:
            _add(
                parser, groups, parameter.name, parameter.annotation, default=parameter.default,
                help_=_helps(function)[parameter.name],
                by_position=parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD,
            )  # fmt: skip


def call(function: Callable[..., Any], options: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Call ``function`` with the values of the options that `add_options` made from it.

    Raises:
        ConfigError: a settings class rejects its values.
    """
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        model = _settings(parameter.annotation)
        arguments[name] = _made(model, {key: options[key] for key in model.model_fields}) if model else options[name]
    return function(**arguments)


def _settings(annotation: Any) -> "type[Strict] | None":  # noqa: ANN401
    return annotation if hasattr(annotation, "model_fields") else None


def _made(model: "type[Strict]", values: dict[str, Any]) -> "Strict":
    from pydantic import ValidationError

    from terraseg.core.settings import faults_of

    try:
        return model(**values)
    except ValidationError as error:
        raise ConfigError(faults_of(error), fix="correct these options") from error


def _helps(documented: Any) -> dict[str, str]:  # noqa: ANN401
    """Description of each argument or attribute; one line may describe several, ``a, b: text``."""
    described = parse(inspect.getdoc(documented) or "").params
    return {name.strip(): each.description or "" for each in described for name in each.arg_name.split(",")}


def _add(
    parser: argparse.ArgumentParser,
    groups: dict[str, Any],
    name: str,
    annotation: Any,  # noqa: ANN401
    *,
    default: Any,  # noqa: ANN401
    help_: str,
    by_position: bool = False,
) -> None:
    option = next((each for each in getattr(annotation, "__metadata__", ()) if isinstance(each, Option)), Option())
    needed = default is inspect.Parameter.empty
    words = {"default": None if needed else default, **_kind(annotation, option, default)}
    words["help"] = _help(help_, words["default"])
    where = _group(parser, groups, option)
    if by_position:
        words["metavar"] = option.metavar or name.upper()
        where.add_argument(name, **words if needed else {**words, "nargs": "?"})
        return
    switched_off = default is True
    flags = [option.name or f"{'no_' * switched_off}{name}", *filter(None, [option.also])]
    where.add_argument(*(f"--{flag.replace('_', '-')}" for flag in flags), dest=name, required=needed, **words)


def _kind(annotation: Any, option: Option, default: Any) -> dict[str, Any]:  # noqa: ANN401
    """The arguments of `argparse.ArgumentParser.add_argument` that follow from a type."""
    types = list(_members(annotation))
    if bool in types:
        return {"action": "store_false" if default is True else "store_true"}
    choices = [each for each in types if get_origin(each) is Literal]
    if choices:
        return {"choices": get_args(choices[0])}
    lists = [each for each in types if get_origin(each) in (Sequence, tuple)]
    of = list(_members(get_args(lists[0])[0])) if lists else types
    plain = Path if Path in of else next(each for each in of if each in _PLACEHOLDERS)
    words: dict[str, Any] = {"metavar": option.metavar or _PLACEHOLDERS[plain], "type": plain}
    if lists and get_origin(lists[0]) is tuple:
        return {**words, "type": _with_commas, "metavar": option.metavar or "A,B,..."}
    if lists:
        return words | ({"action": "append", "default": []} if option.repeated else {"nargs": "+"})
    return words


def _members(annotation: Any) -> Iterator[Any]:  # noqa: ANN401
    """The types of a union, without None."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for each in get_args(annotation):
            yield from _members(each)
    elif annotation is not NoneType:
        yield annotation


def _with_commas(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _help(text: str, default: Any) -> str:  # noqa: ANN401
    line = " ".join(text.split()).replace("`", "").replace("%", "%%")
    line = line if line.endswith("...") else line.removesuffix(".")
    if default is True:
        return f"turn this off: {line}"
    if default is None or default is False or default in ("", (), []):
        return line
    return f"{line} (default: {','.join(default) if isinstance(default, tuple) else default})"


def _group(parser: argparse.ArgumentParser, groups: dict[str, Any], option: Option) -> Any:  # noqa: ANN401
    if option.group not in groups:
        groups[option.group] = parser.add_argument_group(option.group)
    if option.one_of is None:
        return groups[option.group]
    key = f"one of: {option.one_of}"
    if key not in groups:
        groups[key] = groups[option.group].add_mutually_exclusive_group(required=option.required)
    return groups[key]
