"""The graph baseline as a model: its inputs, and that it learns what only regions show."""

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from helpers.paths import CONFIGS
from terraseg.errors import ConfigError, WeightsError
from terraseg.learn.models.build import build_model, superpixel_rule
from terraseg.learn.models.graph.graphsage import GraphSage, divide, graphsage_superpixels

_ARGS = {
    "backbone": "graphsage_superpixels", "backbone_bands": ["B02", "B03"], "backbone_hidden": 32,
    "backbone_segment_pixels": 16, "decoder": "IdentityDecoder", "num_classes": 2,
}  # fmt: skip


def _two_textures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images whose two classes differ only in roughness, and the class of each pixel."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 4, 4)) > 0
    truth = coarse.repeat(12, axis=1).repeat(12, axis=2)
    image = rng.normal(size=(count, 2, 48, 48)) * np.where(truth, 1.2, 0.4)[:, None]
    return torch.from_numpy(image.astype(np.float32)), torch.from_numpy(truth.astype(np.int64))


def test_it_learns_two_textures_that_single_pixels_do_not_show() -> None:
    torch.manual_seed(0)
    model = build_model("EncoderDecoderFactory", {**_ARGS, "backbone_compactness": 4.0})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    image, truth = _two_textures(4, seed=0)
    labels = divide(image, superpixel_rule(model))
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(model(image, superpixels=labels).output, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    unseen, truth = _two_textures(2, seed=1)
    with torch.inference_mode():
        found = model.eval()(unseen).output.argmax(1) == 1
    iou = (found & (truth == 1)).sum() / (found | (truth == 1)).sum()
    assert iou > 0.8


def test_given_superpixels_give_the_same_logits_as_computed_ones() -> None:
    model = build_model("EncoderDecoderFactory", _ARGS).eval()
    image, _ = _two_textures(2, seed=2)
    with torch.inference_mode():
        computed = model(image).output
        given = model(image, superpixels=divide(image, superpixel_rule(model))).output
    assert computed.shape == (2, 2, 48, 48)
    assert torch.equal(computed, given)


def test_each_superpixel_has_one_answer_and_images_of_a_batch_do_not_touch() -> None:
    model = build_model("EncoderDecoderFactory", _ARGS).eval()
    image, _ = _two_textures(2, seed=3)
    labels = divide(image, superpixel_rule(model))
    with torch.inference_mode():
        both = model(image, superpixels=labels).output
        alone = model(image[1:], superpixels=labels[1:]).output
    torch.testing.assert_close(both[1:], alone)
    for region in range(int(labels[0].max()) + 1):
        answers = both[0, :, labels[0] == region]
        torch.testing.assert_close(answers, answers[:, :1].expand_as(answers))


def test_only_the_neighbourhood_is_seen() -> None:
    torch.manual_seed(0)
    encoder = GraphSage(["B02"], hidden=8, layers=2, segment_pixels=4).eval()
    labels = torch.arange(8)[None, None].expand(1, 4, 8)  # eight columns in a row
    image = torch.zeros(1, 1, 4, 8)
    changed = image.clone()
    changed[..., 4] = 5
    with torch.inference_mode():
        before, after = (encoder(one, superpixels=labels)[0][0, :, 0] for one in (image, changed))
    moved = (before - after).abs().amax(0) > 1e-6
    assert moved.tolist() == [False, False, True, True, True, True, True, False]


def test_bad_inputs_raise_an_error() -> None:
    encoder = GraphSage(["B02", "B03"])
    with pytest.raises(ConfigError, match=r"shape \(1, 3, 8, 8\); expected \(batch, 2 bands"):
        encoder(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match="one frame"):
        encoder(torch.zeros(1, 2, 3, 8, 8))
    with pytest.raises(ConfigError, match=r"superpixels of shape \(1, 4, 4\)"):
        encoder(torch.zeros(1, 2, 8, 8), superpixels=torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(WeightsError, match="no published weights"):
        graphsage_superpixels(pretrained=True, bands=["B02"])
    with pytest.raises(ConfigError, match="layers 0"):
        GraphSage(["B02"], layers=0)


def test_the_experiment_differs_from_a_baseline_without_pretraining_only_in_its_model() -> None:
    graph, baseline = (
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").replace(f"outputs/{name}", "outputs/X"))
        for name in ("urban_graphsage", "baseline_unet_scratch")
    )
    arguments = graph["model"]["init_args"].pop("model_args")
    baseline["model"]["init_args"].pop("model_args")
    assert graph == baseline
    model = build_model("EncoderDecoderFactory", arguments)
    assert sum(parameter.numel() for parameter in model.parameters()) == 71_042
