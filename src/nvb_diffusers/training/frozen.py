"""Frozen weights in half precision: autocast computes with such copies anyway, and so none is made at each use.

What validates and what is saved has them as they were: meanwhile they wait in the host's memory.
"""

from collections.abc import Iterable

import torch
from torch import nn

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by accelerate's names


class FrozenWeights:
    """The weights of linear layers and convolutions, which autocast casts, where they do not train.

    Args:
        models: in full precision, on their device; of other layers, such as norms, all stays.
        precision: accelerate's name for it; without autocast nothing changes.

    Attributes:
        weights: those that are halved.
    """

    def __init__(self, models: Iterable[nn.Module], precision: str) -> None:
        self._dtype = AUTOCAST.get(precision)
        layers = [layer for model in models for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        found = {weight: None for layer in layers for weight in layer.parameters(recurse=False)}
        self.weights = [weight for weight in found if not weight.requires_grad and self._dtype]
        self._whole = [weight.data for weight in self.weights]

    def halve(self) -> None:
        """Keep them in half precision on their device, and as they were on the host."""
        for weight, whole in zip(self.weights, self._whole, strict=True):
            weight.data = whole.to(weight.device, self._dtype)
        self._whole = [whole.cpu() for whole in self._whole]

    def make_whole(self) -> None:
        """Put them back, to the bit."""
        for weight, whole in zip(self.weights, self._whole, strict=True):
            weight.data = whole.to(weight.device)
