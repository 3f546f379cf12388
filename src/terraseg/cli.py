"""The command line: one verb for each step, made from the signatures and docstrings of the steps' functions."""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from terraseg import __version__
from terraseg.api.options import add_options, call, summary
from terraseg.errors import ConfigError, TerrasegError

VERBS = {  # the modules named here are light to import
    "data aoi": "api.acquire:aoi",
    "data download": "api.acquire:download",
    "data scene": "api.acquire:import_scene",
    "data labels": "api.acquire:labels",
    "data city": "sample.steps:make_city",
    "data flood": "sample.steps:make_floods",
    "data preprocess": "api.prepare:preprocess",
    "data import": "api.prepare:import_folders",
    "data sen1floods11": "api.prepare:sen1floods11",
    "check": "api.learn:check",
    "convert": "api.learn:convert",
    "pretrain": "api.learn:pretrain",
    "tune": "api.learn:tune",
    "predict": "api.mapping:predict",
    "adapt": "api.mapping:adapt",
    "export": "api.mapping:export",
    "evaluate": "api.assess:evaluate",
    "compare": "api.compare:compare",
    "visualize": "api.assess:visualize",
    "models": "api.learn:models",
    "serve": "serve.start:serve",
    "serve keys add": "serve.start:add_key",
    "serve keys list": "serve.start:list_keys",
    "serve keys revoke": "serve.start:revoke_key",
    "serve clean": "serve.start:clean",
    "demo": "sample.steps:demo",
}
SAMPLE = "sample.steps:download_sample"  # for ``data download --sample``


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: the command line without the program's name; by default that of this process.

    Returns:
        The exit code: 0, 2 for an error that the user can fix, or 130 for Ctrl-C.
    """
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    _start_logging(verbose=options.verbose)
    try:
        _show(options.verb, call(options.function, vars(options)), vars(options))
    except TerrasegError as error:
        if table := getattr(error, "table", None):
            _print(table(), to_stderr=True)
        print(f"terraseg: {error}", file=sys.stderr)  # noqa: T201  # the one line that the user gets
        return 2
    except KeyboardInterrupt:
        print("terraseg: stopped; run the same command again to continue", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, the ``verb`` and its ``function``. Underscores in the name of an option count as dashes."""
    words = [
        "=".join([name.replace("_", "-"), *value]) if word.startswith("--") else word
        for word in arguments
        for name, *value in [word.split("=", 1)]
    ]
    return build_parser(words).parse_args(words)


def build_parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of all verbs.

    Args:
        words: of a command line: only its own verb gets options, whose module is imported; by default all verbs do.
    """
    parser = argparse.ArgumentParser(prog="terraseg", description="From an area of interest to a tested map.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("-v", "--verbose", action="store_true", help="also log messages of other libraries")
    parser.add_argument(
        "--print-completion", action=_Completion, metavar="SHELL", help="print completion for bash, zsh or tcsh"
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    given = [verb for verb in VERBS if words is None or set(verb.split()) <= set(words)]
    parsers: dict[str, argparse.ArgumentParser] = {}
    groups: dict[str, Any] = {"": verbs}
    for verb, path in VERBS.items():
        parent, _, name = verb.rpartition(" ")
        for group in filter(None, [parent.rpartition(" ")[0], parent]):
            if group not in parsers:
                above, _, last = group.rpartition(" ")
                parsers[group] = groups[above].add_parser(last, help=_steps_of(group))
            if group not in groups:
                needed = group not in VERBS
                groups[group] = parsers[group].add_subparsers(title="steps", required=needed, metavar="STEP")
        each = parsers[verb] = groups[parent].add_parser(name, help=summary(path))
        if verb in given and not (words and any(other.startswith(f"{verb} ") for other in given)):
            if verb == "data download":
                each.add_argument("--sample", action="store_true", help=summary(SAMPLE))
                path = SAMPLE if words and "--sample" in words else path
            add_options(each, function := _function(path))
            each.set_defaults(verb=verb, function=function)
    return parser


def _steps_of(group: str) -> str:
    return ", ".join(verb.removeprefix(f"{group} ") for verb in VERBS if verb.startswith(f"{group} "))


class _Completion(argparse.Action):
    """Prints the script and ends: ``terraseg --print-completion bash``."""

    def __call__(self, parser: argparse.ArgumentParser, _: object, shell: object, __: str | None = None) -> None:
        import shtab

        try:
            print(shtab.complete(build_parser(), str(shell)))  # noqa: T201
        except NotImplementedError:
            parser.error(f"no completion for {shell}; there is one for {', '.join(shtab.SUPPORTED_SHELLS)}")
        parser.exit()


def _function(path: str) -> Any:  # noqa: ANN401
    module, _, name = path.partition(":")
    return getattr(import_module(f"terraseg.{module}"), name)


def _show(verb: str, result: Any, options: Mapping[str, Any]) -> None:  # noqa: ANN401
    if verb == "check":
        for finding in result:
            _print(f"{finding.severity}: {finding}", style="red" if finding.severity == "error" else "yellow")
        if errors := sum(finding.severity == "error" for finding in result):
            raise ConfigError(f"{options['config']} has {errors} error{'s' * (errors > 1)}", fix="see the lines above")
        _print(f"sound: {options['config']}")
    elif verb == "convert":
        _print(result.table())
        for line in (*result.notes, *filter(None, [result.command]), f"terraseg check {options['output']}"):
            _print(f"next: {line}")
    elif verb == "export":
        _print(_function("mapping.runtimes.parity:parity_table")(result))
    elif verb == "evaluate":
        for table in _function("report.tables:tables")(result, places=bool(options["by"] or options["footprints"])):
            _print(table)
    elif verb == "compare":
        for part in _function("report.comparison_tables:everything")(result):
            _print(part)
    elif verb == "serve keys add":
        print(result)  # noqa: T201  # alone, for a script
    elif verb == "serve keys list":
        for name, user, made, revoked in result:
            _print(f"{name}  {user}  made {made}" + f"  revoked {revoked}" * bool(revoked))
    elif verb == "serve clean":
        for name in result:
            _print(f"deleted {name}")
    elif verb == "models":
        _print(_function("learn.models.specs:models_table")())


def _print(what: Any, *, style: str | None = None, to_stderr: bool = False) -> None:  # noqa: ANN401
    from rich.console import Console

    Console(stderr=to_stderr, highlight=False, markup=False, soft_wrap=isinstance(what, str)).print(what, style=style)


def _start_logging(*, verbose: bool) -> None:
    from terraseg.core.progress import log_handler, widen_tables

    widen_tables()
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, handlers=[log_handler()], force=True)
    logging.getLogger("terraseg").setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
