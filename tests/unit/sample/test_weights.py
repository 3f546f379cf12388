from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from terraseg.core.tensor_names import map_by_order
from terraseg.errors import WeightsError
from terraseg.sample.weights import with_metadata

TARGET = {"conv.weight": torch.zeros(4, 3), "bn.weight": torch.zeros(4), "bn.bias": torch.zeros(4)}


def test_names_change_and_values_stay() -> None:
    source = {"_c.weight": torch.rand(4, 3), "_b.weight": torch.rand(4), "_b.bias": torch.rand(4)}
    mapped = map_by_order(source, TARGET, where="toy")
    assert list(mapped) == list(TARGET)
    assert all(torch.equal(have, want) for have, want in zip(mapped.values(), source.values(), strict=True))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"_c.weight": torch.zeros(4, 3)}, "1 tensors; expected 3"),
        (
            {"_c.weight": torch.zeros(4, 2), "_b.weight": torch.zeros(4), "_b.bias": torch.zeros(4)},
            r"_c\.weight \(4, 2\) where .* conv\.weight \(4, 3\)",
        ),
        (
            {"_c.weight": torch.zeros(4, 3), "_b.bias": torch.zeros(4), "_b.weight": torch.zeros(4)},
            r"_b\.bias \(4,\) where .* bn\.weight",
        ),
    ],
)
def test_unlike_tensors_are_refused(source: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        map_by_order(source, TARGET, where="toy")


def test_the_file_has_the_same_bytes_each_time_and_all_that_it_says(tmp_path: Path) -> None:
    state = {name: torch.rand(3, 5) for name in "abc"}
    metadata = {key: f"the {key}" for key in ("source", "sha256", "licence", "architecture", "trained_on")}
    assert len({with_metadata(state, metadata) for _ in range(5)}) == 1
    path = tmp_path / "weights.safetensors"
    path.write_bytes(with_metadata(state, metadata))
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == metadata
    read = safetensors.torch.load_file(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)
