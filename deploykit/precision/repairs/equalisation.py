"""Cross-layer equalisation: channels of one tensor that reach equally far.

A tensor in INT8 has one step for all channels; one that reaches a hundred times as far as the
others leaves them one level each. A factor s per channel, with x / s before and W * s in all
readers, changes nothing but that. The range of a channel goes down with s, its share of the
readers' weights goes up; they meet in the middle:

    s = sqrt(r / w),  r = max over tensors of |x| / max|x|,  w = max over readers of |W| / max|W|

with max|W| that of an output channel, which has a step of its own. Repeated until nothing moves.
Factors are powers of two: every number of the graph then keeps its digits, and the outputs are the
same to the last bit wherever a runtime adds up in the same order.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv
1906.04721, section 4.1, with ranges of activations in place of those of the weights before them,
for a step per output channel makes the latter free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from deploykit.errors import InputError
from deploykit.graph import scaling
from deploykit.graph.editing import constant, set_weight
from deploykit.precision.repairs.channels import FIXED, trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from deploykit.precision.repairs.channels import Channels, Layer

    Doubles: TypeAlias = NDArray[np.float64]
    Slots: TypeAlias = NDArray[np.int64]
    Factors: TypeAlias = Mapping[str, tuple[int, ...]]
    """Weight -> for each output channel the e of its factor 2**e."""

_ROUNDS = 100
_STILL = 0.01
"""Relative change below which nothing moves."""
_DEAD = 1e-30
"""Reach that stands for none."""
_MOST = 40
"""Largest e."""


@dataclass(frozen=True)
class Balance:
    """How far the channels of a model are out of line."""

    found: Channels
    powers: Doubles
    """Of each slot, the logarithm of its factor to the base of 2."""
    left: Doubles
    """And that of the reach that the factor leaves."""

    @classmethod
    def of(cls, found: Channels, reaches: Mapping[str, Doubles]) -> Balance:
        """Look at the channels of a model.

        reaches: INT8 tensor -> float64[channels], the largest magnitude of each.
        """
        return cls(found, *_powers(found, reaches))

    def factors(self, beyond: float = 0.0) -> Factors:
        """Return by what the output channels of each layer shall be divided.

        Without those that stay. beyond: channels stay whose factor is within so many powers of two
        of the layer's median one, and so does one that hardly ever has a value, which is no burden
        to the others.
        """
        exponents = self._exponents(beyond)
        return {
            layer.weight: tuple(exponents[layer.outputs].tolist())
            for layer in self.found.layers
            if exponents[layer.outputs].any()
        }

    def _exponents(self, beyond: float) -> Slots:
        powers, outliers = self.powers, np.zeros(self.found.count)
        for layer in self.found.layers:
            free = layer.outputs[layer.outputs != FIXED]
            if len(free):
                off = powers[free] - np.median(powers[free])
                dying = self.left[free] < np.median(self.left[free]) - beyond
                outliers[free] = np.where((np.abs(off) <= beyond) | dying, 0.0, off)
        exponents: Slots = (
            np.rint(outliers if beyond else powers).clip(-_MOST, _MOST).astype(np.int64)
        )
        return exponents


def apply(model: ir.Model, given: Factors) -> None:
    """Divide the output channels of layers by their factors, and multiply what reads them.

    Raises: InputError for factors that would change what the model computes.
    """
    found = trace(model)
    exponents = _given(found, given)
    for layer in found.layers:
        _scale(layer, np.exp2(exponents[layer.inputs]), np.exp2(-exponents[layer.outputs]))


def scaled(found: Channels, given: Factors, reaches: Mapping[str, Doubles]) -> dict[str, Doubles]:
    """Return how far channels reach once they are divided by their factors.

    Raises: InputError as `apply`.
    """
    divisors = np.exp2(_given(found, given))
    slots = {name: found.tensors.get(name) for name in reaches}
    return {
        name: reach
        if (own := slots[name]) is None or len(own) != len(reach)
        else reach / divisors[own]
        for name, reach in reaches.items()
    }


def _given(found: Channels, given: Factors) -> Slots:
    """Return the exponent of each slot. Raises: InputError for factors that do not fit."""
    exponents = np.zeros(found.count, np.int64)
    layers = {layer.weight: layer for layer in found.layers}
    for name, those in given.items():
        if name in layers and len(those) == len(layers[name].outputs):
            exponents[layers[name].outputs] = those
    exponents[FIXED] = 0
    taken = {
        name: tuple(exponents[layer.outputs].tolist())
        for name, layer in layers.items()
        if exponents[layer.outputs].any()
    }
    wrong = next((name for name in (*given, *taken) if given.get(name) != taken.get(name)), None)
    if wrong is not None:
        raise InputError(
            f"the factors of {wrong!r} do not fit the model",
            expected="one for each output channel, the same where channels are added up",
            fix="calibrate the model again",
        )
    return exponents


def _scale(layer: Layer, inputs: Doubles, outputs: Doubles) -> None:
    """Multiply the weights of a layer per input and output channel, its biases per output."""
    if (inputs == 1).all() and (outputs == 1).all():
        return
    first = layer.nodes[0]
    weight = first.inputs[1]
    stored = constant(weight)
    assert weight is not None
    assert stored is not None  # `trace` has looked
    array = stored.astype(np.float64)
    parts = scaling.by_channels(first, array)
    groups, window = len(parts), [1] * (parts.ndim - 3)
    parts *= outputs.reshape(groups, -1, 1, *window) * inputs.reshape(groups, 1, -1, *window)
    _store(weight, array.astype(stored.dtype))
    given = (node.inputs[2] for node in layer.nodes if len(node.inputs) > 2)
    for bias in {value for value in given if value is not None}:
        _scale_bias(layer, bias, outputs)


def _scale_bias(layer: Layer, bias: ir.Value, outputs: Doubles) -> None:
    """Multiply a bias of a layer; where others add it too, the layer gets one of its own."""
    held = constant(bias)
    assert held is not None  # `trace` has looked
    scaled = held.astype(np.float64) * outputs.reshape(held.shape)
    users = [node for node, _ in bias.uses()]
    if set(users) <= set(layer.nodes):
        _store(bias, scaled.astype(held.dtype))
        return
    for node in users:
        if node in layer.nodes:
            set_weight(node, 2, scaled, held.dtype, f"{bias.name}.equalised")


def _store(value: ir.Value, array: NDArray[np.generic]) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    value.meta.clear()  # digits and levels that were known of the number before


def _powers(found: Channels, reaches: Mapping[str, Doubles]) -> tuple[Doubles, Doubles]:
    """Return the logarithms, to the base of 2, of each slot's factor and of the reach it leaves."""
    tensors = [
        (found.tensors[name], np.where(np.isfinite(reach), reach, 0.0))
        for name, reach in reaches.items()
        if name in found.tensors and len(reach) == len(found.tensors[name])
    ]
    weights = [each for layer in found.layers for each in _magnitudes(layer)]
    scale = np.ones(found.count)
    for _ in range(_ROUNDS):
        reach, share = np.zeros(found.count), np.zeros(found.count)
        for slots, largest in tensors:
            now = largest / scale[slots]
            np.maximum.at(reach, slots, now / max(now.max(initial=0), 1e-30))
        for slots, magnitudes in weights:
            now = magnitudes * scale[slots]
            now /= np.maximum(now.max(1, keepdims=True), 1e-30)
            np.maximum.at(share, slots, now.max(0))
        step = np.sqrt(np.where(share > 0, reach / np.where(share > 0, share, 1), reach**2))
        step[~np.isfinite(step) | (step <= 0)] = 1.0
        step[FIXED] = 1.0
        scale *= step
        if np.abs(np.log(step)).max() < _STILL:
            break
    return np.log2(scale), np.log2(np.maximum(reach, _DEAD))


def _magnitudes(layer: Layer) -> Iterator[tuple[Slots, Doubles]]:
    """Yield (slots, the largest |w| of each output and input channel) of each group.

    What reads a single channel has its step for itself, and says nothing.
    """
    node = layer.nodes[0]
    weight = constant(node.inputs[1])
    assert weight is not None  # `trace` has looked
    parts = np.abs(scaling.by_channels(node, weight.astype(np.float64)))
    parts = parts.reshape(*parts.shape[:3], -1).max(3, initial=0)
    for slots, part in zip(np.split(layer.inputs, len(parts)), parts, strict=True):
        if len(slots) > 1:
            yield slots, part
