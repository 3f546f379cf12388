from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from terraseg.mapping.runtimes.attention import attention

TOKENS = np.random.default_rng(0).normal(size=(3, 2, 5, 8)).astype(np.float32)


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(tokens, 2 * tokens, 3 * tokens, **self.options)


@pytest.mark.parametrize(
    ("options", "simple"),
    [({}, True), ({"scale": 0.3}, True), ({"is_causal": True}, False), ({"attn_mask": torch.eye(5)}, False)],
    ids=["plain", "scaled", "causal", "masked"],
)
def test_the_answer_is_that_of_pytorch(tmp_path: Path, options: dict[str, Any], *, simple: bool) -> None:
    model = Attention(**options).eval()
    program = torch.onnx.export(
        model, (torch.zeros(2, *TOKENS.shape[1:]),), dynamo=True, verbose=False, input_names=["tokens"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: attention},
    )  # fmt: skip
    assert program is not None
    program.save(tmp_path / "attention.onnx")
    answer = onnxruntime.InferenceSession(tmp_path / "attention.onnx").run(None, {"tokens": TOKENS})[0]
    np.testing.assert_allclose(answer, model(torch.from_numpy(TOKENS)).numpy(), atol=1e-5)
    if simple:
        found = [node.op_type for node in onnx.load(tmp_path / "attention.onnx").graph.node]
        assert sorted(found) == ["MatMul", "MatMul", "Mul", "Mul", "Mul", "Softmax", "Transpose"]
