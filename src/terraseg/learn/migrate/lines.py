"""What a conversion changed: one line per old key."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from rich import box
from rich.table import Table

from terraseg.learn.migrate.table import Rule

_FLOAT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
_WIDE = 60
"""Most characters of an old value that are shown."""


@dataclass
class Lines:
    """Collects what happens to each old key; nothing is left out without a line.

    Attributes:
        rows: old key, its value, and what stands for it today.
    """

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, key: str, value: object, today: str) -> None:
        """Add a line.

        Args:
            key: old key with its section; "" for something new.
            value: its old value.
            today: what to write, or why nothing stands for it.
        """
        self.rows.append((key, short(value) if key else "", today))

    def leave_out(self, key: str, value: object, rule: Rule | None) -> None:
        """Add a line for a key that is not in the new file."""
        if rule is None:
            self.add(key, value, "left out: terraseg has no such key")
        else:
            self.add(key, value, f"{'left out: ' * rule.is_lost}{rule.note}")

    def table(self, *, title: str) -> Table:
        """All lines, for the screen."""
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for heading in ("old", "today"):
            table.add_column(heading, overflow="fold")
        for key, value, today in self.rows:
            table.add_row(f"{key}: {value}" if key else "(new)", today.replace("`", ""))
        return table


def plain(value: object) -> Any:  # noqa: ANN401
    """A deep copy, in which nothing is shared: YAML writes shared lists as aliases, which the stock parser breaks.

    Texts such as 1e-4 become numbers, as in the stock parser; PyYAML alone wants 1.0e-4.
    """
    if isinstance(value, str) and _FLOAT.fullmatch(value):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def short(value: object) -> str:
    """A value in one line of YAML, cut if it is long."""
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=1 << 20, sort_keys=False).strip()
    text = text.removesuffix("\n...").strip()
    return text if len(text) <= _WIDE else f"{text[: _WIDE - 3]}..."
