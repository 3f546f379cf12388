"""The command line that follows from a signature and a docstring."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from terraseg.api.options import Option, StrPath, add_options, call, summary
from terraseg.core.settings import Strict
from terraseg.errors import ConfigError


class Settings(Strict):
    """Settings.

    Attributes:
        names: names of something.
        side, gap: pixels.
    """

    names: tuple[str, ...] | None = None
    side: int = Field(default=4, ge=2)
    gap: float | None = None


def step(
    config: Annotated[StrPath, Option(metavar="CONFIG")],
    *,
    scenes: Annotated[StrPath | Sequence[StrPath], Option("input", one_of="input", also="root")] = "raw",
    listed: Annotated[StrPath | None, Option("input", one_of="input")] = None,
    changes: Annotated[Sequence[str], Option(name="set", repeated=True)] = (),
    split: Literal["train", "test"] = "test",
    tta: bool = False,
    model: bool = True,
    batch_size: int = 8,
    settings: Settings = Settings(),  # noqa: B008
) -> dict[str, Any]:
    """Do a step.

    More about it.

    Args:
        config: the file.
        scenes: `scene` or folder, 50 % of it.
        listed: a list.
        changes: what to change.
        split: of the dataset.
        tta: average.
        model: look at the model.
        batch_size: windows at a time.
        settings: the rest.
    """
    return dict(locals())


def run(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_options(parser, step)
    given: dict[str, Any] = call(step, vars(parser.parse_args(words)))
    return given


def test_defaults_are_those_of_the_signature() -> None:
    assert run("a.yaml") == {
        "config": Path("a.yaml"), "scenes": Path("raw"), "listed": None, "changes": [], "split": "test", "tta": False,
        "model": True, "batch_size": 8, "settings": Settings(),
    }  # fmt: skip


def test_each_type_has_its_kind_of_option() -> None:
    given = run(
        *[
            "a.yaml",
            "--scenes",
            "x",
            "y",
            "--set",
            "a=1",
            "--set",
            "b=2",
            "--split",
            "train",
            "--tta",
            "--no-model",
            "--batch-size",
            "3",
        ],
        *["--names", "B02,B03", "--side", "5", "--gap", "1.5"],
    )
    assert given["scenes"] == [Path("x"), Path("y")]
    assert given["changes"] == ["a=1", "b=2"]
    assert (given["split"], given["tta"], given["model"], given["batch_size"]) == ("train", True, False, 3)
    assert given["settings"] == Settings(names=("B02", "B03"), side=5, gap=1.5)
    assert run("a.yaml", "--root", "z")["scenes"] == [Path("z")]


@pytest.mark.parametrize(
    "words", ["", "a.yaml --split val", "a.yaml --listed a --scenes b", "a.yaml --batch-size x", "a.yaml --unknown"]
)
def test_what_does_not_fit_ends_with_status_2(words: str) -> None:
    with pytest.raises(SystemExit) as end:
        run(*words.split())
    assert end.value.code == 2


def test_settings_that_do_not_hold_are_named() -> None:
    with pytest.raises(ConfigError, match="side"):
        run("a.yaml", "--side", "1")


def test_help_shows_groups_types_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("Do a step. More about it.", "input: --scenes PATH [PATH ...], --root PATH [PATH ...]", "50 % of it",
                 "--batch-size N windows at a time (default: 8)", "--side N pixels (default: 4)",
                 "--split {train,test}", "--no-model turn this off: look at the model"):  # fmt: skip
        assert part in shown


def test_a_summary_is_read_without_an_import() -> None:
    assert summary("api.mapping:export").startswith("Export a bundle's model")
