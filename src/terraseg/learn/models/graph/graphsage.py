"""GraphSAGE over superpixels (Hamilton et al. 2017, arXiv:1706.02216), as a backbone for TerraTorch."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY
from torch import Tensor, nn

from terraseg.core.bands import band
from terraseg.errors import ConfigError, WeightsError
from terraseg.learn.models.graph.regions import SHAPE_FEATURES, region_graph
from terraseg.learn.models.graph.superpixels import SuperpixelRule


class GraphSage(nn.Module):
    """An encoder from an image to one map that is constant over each superpixel.

    With the identity as decoder, TerraTorch's head (dropout, 1 x 1 convolution) classifies the pixels of the map. So
    loss and scores are per pixel, as for every other model.

    Args:
        bands: ESA names of the input, in order.
        hidden: width of a node's state.
        layers: number of steps, each with a mean over the neighbours (``SAGEConv``).
        dropout: between the layers.
        segment_pixels: see `SuperpixelRule.pixels`.
        compactness: see `SuperpixelRule.compactness`.
    """

    def __init__(
        self,
        bands: Sequence[str],
        *,
        hidden: int = 128,
        layers: int = 3,
        dropout: float = 0.1,
        segment_pixels: int = 16,
        compactness: float = 1.0,
    ) -> None:
        from torch_geometric.nn import SAGEConv  # takes seconds, which the other models don't need

        super().__init__()
        if layers < 1 or hidden < 1:
            raise ConfigError(f"layers {layers}, hidden {hidden}", expected="1 or more of each")
        self.bands = tuple(band(name).name for name in bands)
        self.superpixels = SuperpixelRule(pixels=segment_pixels, compactness=compactness)
        self.out_channels = [hidden]
        widths = [2 * len(self.bands) + SHAPE_FEATURES, *[hidden] * layers]
        self.convolutions = nn.ModuleList([SAGEConv(given, wanted) for given, wanted in pairwise(widths)])
        self.norms = nn.ModuleList([nn.LayerNorm(hidden) for _ in range(layers)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, superpixels: Tensor | None = None, **_: object) -> list[Tensor]:
        """Map of the state of each pixel's superpixel.

        Args:
            x: (B, bands, H, W), standardised.
            superpixels: (B, H, W) int64 of the same images; computed by default.

        Returns:
            One map, (B, hidden, H, W).

        Raises:
            ConfigError: wrong number of bands, several frames, or superpixels of another size.
        """
        if x.ndim != 4 or x.shape[1] != len(self.bands):
            raise ConfigError(
                f"the input has shape {tuple(x.shape)}",
                expected=f"(batch, {len(self.bands)} bands, rows, columns), one frame",
            )
        labels = divide(x, self.superpixels) if superpixels is None else superpixels
        if labels.shape != (len(x), *x.shape[2:]):
            raise ConfigError(f"superpixels of shape {tuple(labels.shape)} for images of {tuple(x.shape)}")
        graph = region_graph(x, labels, pixels=self.superpixels.pixels)
        state = graph.features
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            state = self.dropout(norm(convolution(state, graph.edges)).relu())
        return [state[graph.nodes].movedim(-1, 1)]


def divide(images: Tensor, rule: SuperpixelRule) -> Tensor:
    """The superpixels of a batch, computed on the CPU.

    Args:
        images: (B, bands, H, W), standardised.

    Returns:
        (B, H, W) int64 on the device of the images.
    """
    pixels = images.detach().float().cpu().numpy()
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        labels = np.stack(list(pool.map(rule.divide, pixels)))
    return torch.from_numpy(labels).to(images.device)


@TERRATORCH_BACKBONE_REGISTRY.register  # type: ignore[untyped-decorator]
def graphsage_superpixels(*, pretrained: bool = False, **options: object) -> GraphSage:
    """Build `GraphSage` by its name in a config.

    Raises:
        WeightsError: ``pretrained`` is true; nobody published weights.
    """
    if pretrained:
        raise WeightsError("graphsage_superpixels has no published weights", fix="set `weights: random`")
    return GraphSage(**options)  # type: ignore[arg-type]  # the class checks them
