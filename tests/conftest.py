"""Fixtures shared by the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from deploykit import files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

SIDE = 64
"""Height and width of the exported test model's input, in pixels."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YOLOv6 pico for 6 classes, train form, with random weights and statistics."""
    import torch

    torch.manual_seed(0)
    network = files.recipe("yolov6").build("pico", 6)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0.0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("checkpoint") / "pico.pth"
    torch.save({"model": network.state_dict()}, path)
    return path


@pytest.fixture(scope="session")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint exported at 64x64."""
    from deploykit.exporting import ExportOptions, export

    path = tmp_path_factory.mktemp("model") / "pico.onnx"
    export(checkpoint, path, ExportOptions(input_size=(SIDE, SIDE)))
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight small generated photographs."""
    folder = tmp_path_factory.mktemp("photos")
    for number, sample in enumerate(files.dataset("shapes:count=8,size=96").samples):
        Image.fromarray(np.asarray(sample.read())).save(folder / f"{number}.jpg", quality=95)
    return folder


@pytest.fixture
def randomised() -> Callable[[nn.Module], nn.Module]:
    """Return a function that gives a network random weights and batch norm statistics."""
    import torch

    def change(network: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        for key, value in network.state_dict().items():
            if "proj" in key or not value.is_floating_point():
                continue
            if key.endswith("running_var"):
                value.uniform_(0.5, 2, generator=generator)
            elif value.ndim == 1 and key.endswith(("weight", "alpha")):
                value.uniform_(0.3, 0.8, generator=generator)
            elif value.ndim == 1:
                value.normal_(0, 0.2, generator=generator)
            else:
                value.normal_(0, (0.7 / value[0].numel()) ** 0.5, generator=generator)
        return network.eval()

    return change
