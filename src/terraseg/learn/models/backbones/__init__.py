"""Backbones that TerraTorch doesn't have, one module each.

A new module is enough to add one. It states ``SPECS = family(...)`` with literal arguments, which
`terraseg.learn.models.specs` reads from the source, and registers its models when it is imported.
"""

from importlib import import_module
from pkgutil import iter_modules


def import_all() -> None:
    """Import every module of this folder, so that TerraTorch knows its models."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
