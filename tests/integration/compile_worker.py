"""PyTorch's compiler in a process of its own, as it is used: its imports don't bear all that a test run has loaded."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from factories import make_info
from terraseg.errors import TerrasegError
from terraseg.mapping import export
from terraseg.mapping.bundle import Bundle
from terraseg.mapping.compiled import check_compiler, compile_model
from terraseg.scene import open_scene


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(6, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(8, 2, 2, 2),
        )

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.layers(image)
        return logits


class Chipwise(Net):
    """A loop, whose length the compiler can't leave open."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([self.layers(chip[None])[0] for chip in image])


class NetBundle(Bundle):
    def load_model(self) -> nn.Module:
        return Net().eval()


def make_bundle(root: Path) -> Bundle:
    return NetBundle(root, make_info())


if __name__ == "__main__":
    what, folder, *scenes = sys.argv[1:]
    try:
        check_compiler()
        if what == "chipwise":
            compile_model(Chipwise().eval(), torch.zeros(2, 6, 32, 32), Path(folder))
        else:
            export._SECONDS = 0.0
            places = [(open_scene(Path(scene)),) for scene in scenes]
            export.export_bundle(make_bundle(Path(folder)), places, chips=6, batch_size=4, compiled=True)
    except TerrasegError as error:
        sys.exit(str(error))
