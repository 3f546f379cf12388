"""Progress where nobody watches: lines, no bar."""

import sys

import pytest
from rich.console import Console

from terraseg.core import progress


def test_a_long_task_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = iter(range(0, 1000, 20))  # seconds
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    assert list(progress.track("abcd", "letters")) == list("abcd")
    assert capsys.readouterr().err.splitlines() == ["letters: 2 of 4", "letters: 4 of 4"]


def test_a_hidden_or_a_short_task_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(range(3), "short")) == list(progress.track(range(3), "x", hidden=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_tables_are_wide_where_no_terminal_folds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setenv("TERM", "dumb")
    progress.widen_tables()
    assert Console(file=sys.stdout).width >= 160


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress.track(range(2), "chips")) == [0, 1]
    assert "2/2" in capsys.readouterr().err
