import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from terraseg.mapping.runtimes.pooling import adaptive_average

IMAGE = np.random.default_rng(0).normal(size=(3, 4, 6, 8)).astype(np.float32)


class Pool(nn.Module):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(image, self.size)


@pytest.mark.parametrize("size", [(3, 4), (4, 3), (5, 8), (7, 11)])
def test_the_mean_is_that_of_pytorch_in_simple_operations(
    tmp_path: Path, size: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    model = Pool(size).eval()
    program = torch.onnx.export(
        model, (torch.zeros(2, *IMAGE.shape[1:]),), dynamo=True, verbose=False, input_names=["image"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        custom_translation_table={torch.ops.aten._adaptive_avg_pool2d.default: adaptive_average},
    )  # fmt: skip
    program.save(tmp_path / "pool.onnx")
    answer = onnxruntime.InferenceSession(tmp_path / "pool.onnx").run(None, {"image": IMAGE})[0]
    np.testing.assert_allclose(answer, model(torch.from_numpy(IMAGE)).numpy(), atol=1e-6)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    operations = {node.op_type for node in onnx.load(tmp_path / "pool.onnx").graph.node}
    assert operations <= {"AveragePool", "Reshape", "MatMul", "Constant"}
