"""The losses against other implementations and their definitions; ignored pixels have no part in any."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from helpers.factories import make_dataset, make_scene, make_truth
from terraseg.contracts.dataset import ChipDataset, open_dataset, write_dataset
from terraseg.errors import ConfigError, DatasetError
from terraseg.learn.check.config import check_loss
from terraseg.learn.training.criterion import SegmentationLoss, balanced_class_weights
from terraseg.learn.training.losses import LOSSES, focal_tversky, signed_distance


def _logits(classes: int = 2, size: int = 12) -> Tensor:
    return torch.randn(2, classes, size, size, generator=torch.Generator().manual_seed(0))


def _truth(classes: int = 2, size: int = 12) -> Tensor:
    return torch.randint(0, classes, (2, size, size), generator=torch.Generator().manual_seed(1))


# --- ignored pixels ---


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_have_no_gradient_and_no_influence(name: str) -> None:
    loss = SegmentationLoss({name: 1.0})
    truth, logits = _truth(), _logits().requires_grad_()
    truth[:, :5] = -1
    value = loss(logits, truth)["loss"]
    value.backward()
    assert logits.grad is not None
    assert (logits.grad[:, :, :5] == 0).all()
    assert (logits.grad[:, :, 5:] != 0).any()
    other = logits.detach().clone()
    other[:, :, :5] = 50 * torch.randn(2, 2, 5, 12)
    torch.testing.assert_close(loss(other, truth)["loss"], value.detach())


@pytest.mark.parametrize(("name", "class_weights"), [*((name, None) for name in LOSSES), ("ce", [1.0, 3.0])])
def test_a_batch_of_ignored_pixels_alone_costs_nothing(name: str, class_weights: list[float] | None) -> None:
    logits = _logits().requires_grad_()
    value = SegmentationLoss({name: 1.0}, class_weights=class_weights)(logits, torch.full((2, 12, 12), -1))["loss"]
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("alone", [0, 1])
def test_chips_of_one_class_alone_have_a_finite_loss_and_gradient(name: str, alone: int) -> None:
    for logits in (_logits(), 80 * F.one_hot(torch.full((2, 12, 12), alone), 2).movedim(-1, 1).float()):
        logits.requires_grad_()
        value = SegmentationLoss({name: 1.0})(logits, torch.full((2, 12, 12), alone))["loss"]
        value.backward()
        assert logits.grad is not None
        assert torch.isfinite(value)
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_summed_in_full(name: str) -> None:
    logits, truth = _logits(size=300), _truth(size=300)
    loss = SegmentationLoss({name: 1.0})
    torch.testing.assert_close(loss(logits.half(), truth)["loss"], loss(logits, truth)["loss"], rtol=1e-3, atol=1e-3)


# --- definitions ---


def _one(name: str, logits: Tensor, truth: Tensor, **options: Any) -> Tensor:
    value: Tensor = SegmentationLoss({name: 1.0}, **options)(logits, truth)["loss"]
    return value


@pytest.mark.parametrize("class_weights", [None, [0.5, 4.0, 1.0]])
def test_cross_entropy_is_that_of_torch(class_weights: list[float] | None) -> None:
    logits, truth = _logits(3), _truth(3)
    truth[0, :3] = -1
    weight = None if class_weights is None else torch.tensor(class_weights)
    expected = F.cross_entropy(logits, truth, weight=weight, ignore_index=-1)
    torch.testing.assert_close(_one("ce", logits, truth, class_weights=class_weights), expected)


def test_focal_is_that_of_torchvision_on_the_difference_of_two_logits() -> None:
    logits, truth = _logits(), _truth()
    difference = logits[:, 1] - logits[:, 0]
    expected = sigmoid_focal_loss(difference, truth.float(), alpha=-1, gamma=2, reduction="mean")
    torch.testing.assert_close(_one("focal", logits, truth), expected)


def test_dice_is_one_less_the_coefficient_of_the_probabilities() -> None:
    logits, truth = _logits(3), _truth(3)
    probability, wanted = logits.softmax(1), F.one_hot(truth, 3).movedim(-1, 1)
    hit = (probability * wanted).sum((0, 2, 3))
    expected = 1 - (2 * hit / (probability.sum((0, 2, 3)) + wanted.sum((0, 2, 3)))).mean()
    torch.testing.assert_close(_one("dice", logits, truth), expected)


def test_lovasz_of_a_hard_map_is_one_less_its_iou() -> None:
    truth, predicted = _truth(), _truth().roll(1, dims=1)
    hard = 200 * F.one_hot(predicted, 2).movedim(-1, 1).float()
    iou = [((truth == of) & (predicted == of)).sum() / ((truth == of) | (predicted == of)).sum() for of in (0, 1)]
    torch.testing.assert_close(_one("lovasz", hard, truth), 1 - torch.stack(iou).mean())


def test_tversky_is_that_of_smp_and_dice_where_both_faults_cost_alike() -> None:
    logits, truth = _logits(), _truth()
    smp_of_each = smp.losses.TverskyLoss("multiclass", alpha=0.3, beta=0.7, gamma=1.0)  # it calls false ones alpha
    torch.testing.assert_close(focal_tversky(logits, truth, gamma=1.0), smp_of_each(logits, truth))
    alike = focal_tversky(logits, truth, alpha=0.5, beta=0.5, gamma=1.0)
    torch.testing.assert_close(alike, _one("dice", logits, truth))


def test_focal_tversky_is_the_mean_of_the_classes_roots() -> None:
    logits, truth = _logits(), _truth()
    probability = logits.softmax(1)
    losses = []
    for of in (0, 1):
        p, wanted = probability[:, of], (truth == of).float()
        hit = (p * wanted).sum()
        index = hit / (hit + 0.7 * ((1 - p) * wanted).sum() + 0.3 * (p * (1 - wanted)).sum())
        losses.append((1 - index) ** 0.75)
    torch.testing.assert_close(_one("focal_tversky", logits, truth), torch.stack(losses).mean())


def test_boundary_is_probability_times_distance_to_the_nearest_pixel_of_the_other_kind() -> None:
    logits, truth = _logits(size=9), torch.zeros(2, 9, 9, dtype=torch.long)
    truth[0, 2:6, 3:8] = 1
    truth[0, :, 0] = -1
    places = np.argwhere(np.ones((9, 9)))
    expected = 0.0
    for row, column in places:
        label = int(truth[0, row, column])
        if label == -1:
            continue
        others = [place for place in places if truth[0, *place] == 1 - label]
        distance = min(float(np.hypot(*(np.array([row, column]) - other))) for other in others)
        expected += float(logits.softmax(1)[0, 1, row, column]) * (distance if label == 0 else 1 - distance)
    known = int((truth >= 0).sum())  # the second chip has no boundary, and its pixels count
    assert float(_one("boundary", logits, truth)) == pytest.approx(expected / known, rel=1e-5)


def test_share_is_the_binomial_likelihood_of_the_covered_share() -> None:
    logits = torch.tensor([[[[0.0, 1.0, 5.0]], [[2.0, 0.0, -5.0]]]])
    covered = torch.tensor([[[0.25, 1.0, -1.0]]])  # the last pixel is unknown
    p = torch.sigmoid(torch.tensor([2.0, -1.0]))
    expected = -(0.25 * p[0].log() + 0.75 * (1 - p[0]).log() + p[1].log()) / 2
    losses = SegmentationLoss({"share": 1.0, "ce": 0.5})(logits, torch.tensor([[[0, 1, -1]]]), covered)
    torch.testing.assert_close(losses["share"], expected)
    torch.testing.assert_close(losses["loss"], expected + 0.5 * losses["ce"])


def test_the_best_probability_of_a_share_is_the_share() -> None:
    covered = torch.tensor([0.1, 0.6]).reshape(2, 1, 1)
    odds = torch.logit(torch.tensor(0.35)).requires_grad_()
    logits = torch.stack([torch.zeros(2, 1, 1), odds.expand(2, 1, 1)], 1)
    SegmentationLoss({"share": 1.0})(logits, torch.zeros(2, 1, 1), covered)["loss"].backward()
    assert odds.grad == pytest.approx(0, abs=1e-7)


def test_ignored_pixels_are_no_boundary() -> None:
    label = np.zeros((1, 9), np.int64)
    label[0, :3], label[0, 3:5] = 1, -1
    np.testing.assert_allclose(signed_distance(label, 1), [[-4, -3, -2, 1, 2, 3, 4, 5, 6]])


# --- the sum ---


def test_the_losses_are_added_with_their_factors() -> None:
    both = SegmentationLoss({"ce": 2.0, "boundary": 0.01})(_logits(), _truth())
    torch.testing.assert_close(both["loss"], 2 * both["ce"] + 0.01 * both["boundary"])


def test_it_has_no_state() -> None:
    assert SegmentationLoss({"ce": 1.0}, class_weights=[1.0, 2.0]).state_dict() == {}


@pytest.mark.parametrize(
    ("factors", "class_weights"), [({"jaccard": 1.0}, None), ({}, None), ({"dice": 1.0}, [1.0, 2.0])]
)
def test_what_can_not_be_computed_raises_an_error(factors: dict[str, float], class_weights: list[float] | None) -> None:
    with pytest.raises(ConfigError, match="loss is"):
        SegmentationLoss(factors, class_weights=class_weights)


def test_a_loss_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.key for finding in check_loss({"loss": "toy"})] == ["model.init_args.loss"]
    monkeypatch.setitem(LOSSES, "toy", lambda logits, truth: (logits.argmax(1) != truth).float().mean())
    assert check_loss({"loss": {"ce": 1.0, "toy": 2.0}}) == []
    logits, truth = _logits(), _truth()
    expected = (logits.argmax(1) != truth).float().mean()
    torch.testing.assert_close(_one("toy", logits, truth), expected)


# --- class weights from the data ---


@pytest.fixture
def dataset(tmp_path: Path) -> ChipDataset:
    truth = make_truth((64, 256))
    return make_dataset(tmp_path / "set", make_scene(tmp_path, (64, 256), truth=truth), truth)


def test_balanced_weights_are_those_of_scikit_learn(dataset: ChipDataset) -> None:
    labels = np.repeat([0, 1], [dataset.stats.class_pixels[0], dataset.stats.class_pixels[1]])
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    np.testing.assert_allclose(balanced_class_weights(dataset, dataset.split("train")), expected)


def test_balanced_weights_of_a_label_fraction_read_no_other_labels(tmp_path: Path) -> None:
    truth = make_truth((256, 512))
    dataset = make_dataset(tmp_path / "set", make_scene(tmp_path, (256, 512), truth=truth), truth, tile_size=64)
    train = dataset.split("train")
    chips = train[train["class_fraction"].between(0.01, 0.99)].iloc[:2]
    for tile in set(train["tile"]) - set(chips["tile"]):
        dataset.mask("train", tile).unlink()
    masks = []
    for tile in chips["tile"]:
        with rasterio.open(dataset.mask("train", tile)) as source:
            masks.append(source.read(1))
    labels = np.stack(masks)
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels[labels >= 0])
    np.testing.assert_allclose(balanced_class_weights(dataset, chips), expected)


def test_a_class_without_pixels_has_no_weight(dataset: ChipDataset) -> None:
    stats = dataset.stats.model_copy(update={"class_pixels": {0: 10}})
    write_dataset(dataset.root, info=dataset.info, tiles=dataset.tiles, stats=stats, audit=dataset.audit)
    with pytest.raises(DatasetError, match="no pixel of building"):
        balanced_class_weights(open_dataset(dataset.root), dataset.split("train"))
