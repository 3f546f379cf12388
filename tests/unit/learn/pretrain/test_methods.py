from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from terratorch.registry import BACKBONE_REGISTRY
from torch import Tensor, nn

from terraseg.errors import ConfigError, WeightsError
from terraseg.learn.models.backbones.mae import MaskedViT
from terraseg.learn.models.build import backbone_of, build_model, set_statistics
from terraseg.learn.models.encoder_file import Pretraining, write_encoder
from terraseg.learn.models.weights import load_weights
from terraseg.learn.pretrain.mae import MAE, patches
from terraseg.learn.pretrain.simmim import SimMIM
from terraseg.learn.pretrain.task import PretrainTask

_BANDS = ["B02", "B03", "B04"]
_VIT = {"width": 32, "depth": 2, "heads": 2, "bands": _BANDS}
_MEANS, _STDS = np.array([900, 1000, 1100], np.float32), np.array([200, 300, 400], np.float32)


def _mae(**options: object) -> MAE:
    torch.manual_seed(0)
    return MAE(MaskedViT(**_VIT), decoder_width=32, decoder_depth=1, **options)  # type: ignore[arg-type]


def _simmim() -> SimMIM:
    torch.manual_seed(0)
    encoder = BACKBONE_REGISTRY.build("timm_tf_efficientnet_lite0", pretrained=False, in_chans=3)
    return SimMIM(encoder, bands=3, decoder_channels=(8, 8, 8, 8, 8))


def _batch(size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(size, 3, 4, 4, generator=generator) * 4 - 2
    return nn.functional.interpolate(smooth, (32, 32), mode="bilinear"), torch.ones(size, 32, 32, dtype=torch.bool)


def _loss(model: nn.Module, image: Tensor, valid: Tensor, *, seed: int = 1) -> float:
    torch.manual_seed(seed)
    with torch.no_grad():
        return float(model.eval()(image, valid))


def test_patches_are_cut_row_by_row() -> None:
    image = torch.arange(2 * 3 * 16 * 24).view(2, 3, 16, 24)
    cut = patches(image, 8)
    assert cut.shape == (2, 6, 3 * 64)
    assert bool((cut[1, 4].view(3, 8, 8) == image[1, :, 8:16, 8:16]).all())


@pytest.mark.parametrize("make", [_mae, _simmim], ids=["mae", "simmim"])
def test_the_model_learns_to_fill_in_what_is_hidden(make: Callable[[], nn.Module]) -> None:
    model, (image, valid) = make(), _batch()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(20):
        torch.manual_seed(0)  # always the same mask
        optimizer.zero_grad()
        loss = model(image, valid)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.85 * losses[0]


@pytest.mark.parametrize("make", [_mae, _simmim], ids=["mae", "simmim"])
def test_a_batch_without_any_observation_has_no_loss(make: Callable[[], nn.Module]) -> None:
    model, (image, valid) = make(), _batch()
    assert _loss(model, image, valid) > 0
    assert _loss(model, torch.zeros_like(image), torch.zeros_like(valid)) == 0


def test_simmim_paints_only_what_was_observed() -> None:
    """With a loss on one pixel alone, it is that pixel's error."""
    model, (image, valid) = _simmim(), _batch(1)
    one = torch.zeros_like(valid)
    one[:, 5, 5] = True
    losses = {_loss(model, image, one, seed=seed) for seed in range(20)}
    assert 0 in losses, "the pixel was not hidden"
    assert len(losses) > 1


def test_mae_hides_patches_without_observation_first() -> None:
    model, (image, valid) = _mae(), _batch()
    valid[:, :, 16:] = False  # 8 of 16 patches are valid, and 4 are shown
    before = _loss(model, image, valid)
    image[:, :, :, 16:] = 5
    assert _loss(model, image, valid) == pytest.approx(before) != 0
    valid[:, :, 8:] = False  # the 4 valid patches are all shown
    assert _loss(model, image, valid) == 0


def test_methods_name_the_backbones_that_they_need() -> None:
    cnn = BACKBONE_REGISTRY.build("timm_tf_efficientnet_lite0", pretrained=False, in_chans=3)
    with pytest.raises(ConfigError, match="mae_vit_tiny"):
        MAE(cnn)
    with pytest.raises(ConfigError, match="12"):
        SimMIM(BACKBONE_REGISTRY.build("mae_vit_tiny", bands=_BANDS), bands=3)
    with pytest.raises(ConfigError, match="mask_ratio 1"):
        _mae(mask_ratio=1.0)
    with pytest.raises(ConfigError, match="mask_patch 12"):
        SimMIM(cnn, bands=3, mask_patch=12)


_FPN = {
    "backbone": "mae_vit_tiny", "backbone_bands": _BANDS, "decoder": "FCNDecoder", "decoder_channels": 8,
    "necks": [{"name": "SelectIndices", "indices": [11]}], "num_classes": 2,
}  # fmt: skip


@pytest.fixture
def pretrained(tmp_path: Path) -> tuple[Path, nn.Module]:
    encoder = BACKBONE_REGISTRY.build("mae_vit_tiny", bands=_BANDS)
    encoder.set_statistics(means=_MEANS, stds=_STDS)
    pretraining = Pretraining(
        method="mae", backbone="mae_vit_tiny", backbone_args={}, bands=tuple(_BANDS), means=tuple(map(float, _MEANS)),
        stds=tuple(map(float, _STDS)), chip_size=32, batch_size=4, steps=2, seed=0, scenes=("a", "b"),
        attribution=("made by the tests",),
    )  # fmt: skip
    path = tmp_path / "encoder.safetensors"
    write_encoder(path, encoder, pretraining)
    before = path.read_bytes()
    write_encoder(path, encoder, pretraining)
    assert path.read_bytes() == before
    return path, encoder.eval()


def test_an_experiment_shows_the_encoder_pixels_on_the_scale_of_its_pretraining(
    pretrained: tuple[Path, nn.Module],
) -> None:
    torch.set_float32_matmul_precision("highest")  # importing TerraTorch lowers it
    path, encoder = pretrained
    model = build_model("EncoderDecoderFactory", _FPN)
    means, stds = _MEANS + 300, _STDS * 2  # of another dataset
    set_statistics(model, means=means, stds=stds)
    said = load_weights(model, str(path), model_args=_FPN, bands=_BANDS)
    assert "terraseg pretrain (mae, 2 steps, 2 scenes)" in said
    dn = torch.rand(2, 3, 32, 32) * 2000

    def standardised(a: np.ndarray, b: np.ndarray) -> Tensor:
        return (dn - torch.tensor(a).view(-1, 1, 1)) / torch.tensor(b).view(-1, 1, 1)

    with torch.no_grad():
        expected = encoder(standardised(_MEANS, _STDS))
        found = backbone_of(model).eval()(standardised(means, stds))
    assert [tuple(each.shape) for each in found] == [(2, 192, 4, 4)] * 12
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "bands", "words"),
    [
        ({"backbone_bands": ["B04", "B03", "B02"]}, ["B04", "B03", "B02"], ["B02, B03, B04", "B04, B03, B02"]),
        ({"backbone": "mae_vit_small"}, _BANDS, ["mae_vit_tiny", "mae_vit_small"]),
        ({"backbone_patch_size": 4}, _BANDS, ["patch_embed.proj.weight", "(192, 3, 8, 8)", "(192, 3, 4, 4)"]),
    ],
)
def test_an_experiment_that_does_not_fit_raises_one_error(
    pretrained: tuple[Path, nn.Module], changes: dict[str, object], bands: list[str], words: list[str]
) -> None:
    arguments = {**_FPN, **changes}
    with pytest.raises(WeightsError) as caught:
        load_weights(
            build_model("EncoderDecoderFactory", arguments), str(pretrained[0]), model_args=arguments, bands=bands
        )
    assert all(word in str(caught.value) for word in words)


def test_a_process_that_does_not_write_the_encoder_has_ended_too() -> None:
    task = PretrainTask(method="mae", backbone="mae_vit_tiny")
    assert not task.ended
    task._trainer = SimpleNamespace(is_global_zero=False)  # of several GPUs
    task.on_train_end()
    assert task.ended
