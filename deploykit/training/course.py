"""How long, how fast and from whom a network learns."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from deploykit.errors import OptionError, unknown_name

Optimizer: TypeAlias = Literal["adam", "sgd"]


@dataclass(frozen=True)
class Course:
    """How long, how fast and from whom a network learns."""

    epochs: int = 10
    learning_rate: float = 1e-5
    scale_rate: float = 1e-3
    """Of learned steps: relative to their size."""
    final: float = 0.01
    """Of both rates, at the end of a cosine."""
    optimizer: Optimizer = "adam"
    average: float = 0.998
    """Decay, each step, of the averaged weights, which are the result; 0: the last ones are."""
    feature_weight: float = 10.0
    """Of the channel-wise distillation of features; it ends at a hundredth, by a cosine."""
    head_weight: float = 1.0
    """Of the distillation of what the heads give; likewise."""
    loss_weight: float = 1.0
    """Of a loss of the user's own."""
    temperature: float = 1.0
    """Of the channel-wise distillation."""
    features: tuple[str, ...] = ()
    """Tensors."""
    heads: tuple[str, ...] = ()
    """Tensors."""
    seed: int = 0
    amp: bool = False
    """Compute in half precision: FP16 on a GPU, bfloat16 on a CPU."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check what a user may get wrong. Raises: OptionError."""
        if self.optimizer not in get_args(Optimizer):
            raise unknown_name("optimizer", self.optimizer, get_args(Optimizer))
        if self.epochs < 1:
            raise OptionError(f"{self.epochs} epochs", expected="at least 1")
        rates = (self.learning_rate, self.scale_rate)
        if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
            raise OptionError(f"learning rates of {rates}", expected="finite numbers from 0 on")
        weights = (self.feature_weight, self.head_weight, self.loss_weight)
        heat = math.isfinite(self.temperature) and self.temperature > 0
        if not heat or not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise OptionError(
                f"weights of {weights} and a temperature of {self.temperature}",
                expected="finite numbers from 0 on, and a temperature above",
            )
        if self.device != "cpu" and not re.fullmatch(r"cuda(:\d{1,3})?", self.device):
            raise OptionError(f"--device {self.device[:100]!r}", expected="cpu, cuda or cuda:1")
        if not 0 <= self.average < 1:
            raise OptionError(f"a decay of {self.average}", expected="0 to below 1")
