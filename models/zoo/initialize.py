"""Deterministic weights with which activations neither vanish nor explode.

Convolutions and linear layers are scaled so that their outputs have unit variance
on a random batch (layer-sequential unit variance, Mishkin and Matas 2016); running
statistics of BatchNormalization are those of the batch, disturbed a little. Output
channels differ in norm, as they do after training, so that importance has a meaning.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

SPREAD = 0.3
"""Standard deviation of the logarithm of a channel's norm."""


def initialize(model: nn.Module, batch: Sequence[torch.Tensor], seed: int) -> None:
    """Set all parameters and statistics of `model`, then put it in evaluation mode.

    `batch` holds the inputs of one forward run, from which scales are taken.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    hooks = []
    with torch.no_grad():
        for module in model.modules():
            _draw(module, generator)
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                hooks.append(module.register_forward_hook(_unit_variance))
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                hooks.append(module.register_forward_pre_hook(_Statistics(generator)))
        model(*batch)
    for hook in hooks:
        hook.remove()


def _draw(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the parameters that `module` itself owns."""
    for name, parameter in module.named_parameters(recurse=False):
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if isinstance(module, nn.Embedding):
            noise *= getattr(module, "initial_deviation", 1.0)
        elif isinstance(module, nn.LSTM | nn.GRU) and parameter.ndim == 2:
            noise *= parameter.shape[1] ** -0.5
        elif isinstance(module, nn.PReLU):
            noise = 0.25 + 0.05 * noise
        elif name == "weight" and parameter.ndim > 1:
            noise *= _channel_norms(module, generator)
        elif name == "weight":  # the scale of a normalisation
            noise = torch.exp(SPREAD * noise)
        else:
            noise *= 0.1
        parameter.copy_(noise)


def _channel_norms(module: nn.Module, generator: torch.Generator) -> torch.Tensor:
    weight = module.weight
    axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
    shape = [1] * weight.ndim
    shape[axis] = weight.shape[axis]
    return torch.exp(SPREAD * torch.randn(shape, generator=generator))


def _unit_variance(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
) -> torch.Tensor | None:
    """Divide the weights by the deviation of the output; the bias is left as it is."""
    if not module.weight.requires_grad:
        return None
    bias: torch.Tensor | float = 0.0
    if module.bias is not None:
        shape = [1] * output.ndim
        shape[-1 if isinstance(module, nn.Linear) else 1] = -1
        bias = module.bias.view(shape)
    response = output - bias
    deviation = response.std().clamp_min(1e-6)
    module.weight.div_(deviation)
    return response / deviation + bias


class _Statistics:
    """Before a BatchNormalization runs, take its statistics from its input."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1)
        variance = x.var(1).clamp_min(1e-2)
        shift = 0.1 * torch.randn(len(x), generator=self.generator)
        factor = torch.exp(0.1 * torch.randn(len(x), generator=self.generator))
        module.running_mean.copy_(x.mean(1) + shift * variance.sqrt())
        module.running_var.copy_(variance * factor)
