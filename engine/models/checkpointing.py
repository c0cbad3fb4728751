"""Gradient checkpointing of a diffusers UNet, also where diffusers itself leaves it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

ENDS = ("_operate_on_continuous_inputs", "_get_output_for_continuous_inputs")
"""The methods of a Transformer2DModel that lead into its blocks and out of them: norm, projection, residual."""


def checkpoint_unet(unet: Any) -> None:
    """Let a UNet compute its activations a second time in the backward pass instead of keeping them.

    diffusers does so for residual blocks and transformer blocks. The ends of a transformer stay outside, and each keeps
    its input three times, once of them in single precision; of what SD 1.5 holds for a picture that was a fifth.
    """
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    unet.enable_gradient_checkpointing()
    for module in unet.modules():
        if isinstance(module, Transformer2DModel):
            for name in ENDS:
                setattr(module, name, _computed_again(getattr(module, name)))


def _computed_again(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, which keeps only its inputs for the backward pass."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return method(*args, **kwargs)
        return checkpoint(method, *args, use_reentrant=False, **kwargs)

    return forward
