"""The peer's part of `quantization.py` where ModelOpt trains: its fake quantisers in our detector.

    python benchmarks/modelopt_qat.py CHECKPOINT CALIBRATION TRAINING OUTPUT.pth EPOCHS RATE DEVICE

CHECKPOINT: of the detector of `examples/shapes`. CALIBRATION, TRAINING: data sets, as `--source`
takes them. Runs where nvidia-modelopt, torch and this project are installed. ModelOpt quantises
the folded network by its INT8_DEFAULT_CFG (weights per channel, activations by their largest), the
prediction layers left out as ours are; it learns from its float self by the same losses of what the
heads give as `deploykit qat`, with Adam and a cosine. Written are the weights with ModelOpt's
`_amax` beside them, which `deploykit export` and `deploykit quantize --amax` read.
"""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import modelopt.torch.quantization as mtq
import torch

from deploykit.data import samples, sources
from deploykit.networks import loading, reparam
from deploykit.training import distilling, objectives
from deploykit.training.course import Course
from deploykit.training.landmarks import Head

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from deploykit.data.preprocess import Preprocess

BATCH = 16


def batches(spec: str, preprocess: Preprocess, seed: int | None = None) -> Iterator[Tensor]:
    """Yield float32[B, 3, H, W]; shuffled with a seed."""
    data = sources.dataset(spec)
    if seed is not None:
        order = torch.randperm(len(data.samples), generator=torch.Generator().manual_seed(seed))
        data = replace(data, samples=[data.samples[k] for k in order.tolist()])
    for batch in samples.batches(data, preprocess, BATCH):
        yield torch.from_numpy(batch.images)


def loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return how unlike what the heads give is, as `deploykit qat` weighs it."""
    sides = [each.reshape(*each.shape[:2], 4, -1) for each in (student[1], teacher[1])]
    pairs = {"logits": (student[0], teacher[0]), "sides": (sides[0], sides[1])}
    heads = (Head("logits", "sigmoid"), Head("sides", "softmax"))
    return objectives.total(distilling.terms(Course(), heads, pairs, 1.0))[0]


def main() -> None:
    """Quantise, train and export."""
    checkpoint, calibration, training, output, epochs, rate, device = sys.argv[1:]
    torch.manual_seed(0)
    trained = loading.load_network(Path(checkpoint), loading.NetworkOptions())
    teacher: Any = reparam.deployed(trained.recipe, trained.module).eval().to(device)
    preprocess = trained.card.preprocess
    config = copy.deepcopy(mtq.INT8_DEFAULT_CFG)
    rules = config["quant_cfg"]
    for name in ("*cls_preds*", "*reg_preds*"):
        if isinstance(rules, list):
            rules.append({"quantizer_name": name, "enable": False})
        else:
            rules[name] = {"enable": False}

    def calibrate(network: nn.Module) -> None:
        with torch.inference_mode():
            for images in batches(calibration, preprocess):
                network(images.to(device))

    student: Any = mtq.quantize(copy.deepcopy(teacher), config, calibrate)
    mtq.print_quant_summary(student)
    optimizer = torch.optim.Adam(student.parameters(), lr=float(rate))
    count = math.ceil(len(sources.dataset(training).samples) / BATCH) * int(epochs)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count, float(rate) / 100)
    for epoch in range(int(epochs)):
        total = 0.0
        for read in batches(training, preprocess, epoch):
            images = read.to(device)
            with torch.inference_mode():
                wanted = [each.clone() for each in teacher.raw(images)[:2]]
            value = loss(student.raw(images)[:2], wanted)
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it bare
            optimizer.step()
            scheduler.step()
            total += float(value.detach())
        print(f"epoch {epoch + 1}: loss {total * int(epochs) / count:.4f}", flush=True)
    torch.save(
        {"model": student.cpu().state_dict(), "names": list(trained.card.class_names)}, output
    )


if __name__ == "__main__":
    main()
