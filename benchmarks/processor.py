"""The processor's instruction sets. How much faster than a peer something runs may depend on them."""

from collections.abc import Mapping

import torch

_SETS = {"AMX": "amx_tile", "AVX-512": "avx512_f", "AVX2": "avx2"}


def instruction_sets() -> list[str]:
    """Those that this processor has, the fastest first: AMX (matrix products), AVX-512, AVX2."""
    here = torch.cpu.get_capabilities()
    return [name for name, capability in _SETS.items() if here.get(capability)]


def goal_here(goals: Mapping[str, float]) -> tuple[float, str]:
    """The goal for the fastest instruction set of this processor that has one, and its name.

    Args:
        goals: by instruction set; at least for AVX2, which also counts for processors without any of the sets.
    """
    name = next((name for name in instruction_sets() if name in goals), "AVX2")
    return goals[name], name
