"""The loss: how far a prediction is from its target, one number per picture, and how much each picture weighs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from knowledge.config import HuberSchedule, LossFunction, LossSettings, PredictionType


def squared(prediction: Tensor, target: Tensor, _: Tensor) -> Tensor:
    return F.mse_loss(prediction, target, reduction="none")


def absolute(prediction: Tensor, target: Tensor, _: Tensor) -> Tensor:
    return F.l1_loss(prediction, target, reduction="none")


def huber(prediction: Tensor, target: Tensor, threshold: Tensor) -> Tensor:
    """Pseudo-Huber loss 2c(√(d² + c²) − c). Khrapov et al. 2024 (arXiv:2403.16728), with kohya's leading factor."""
    return 2 * threshold * (((prediction - target) ** 2 + threshold**2).sqrt() - threshold)


def smooth_absolute(prediction: Tensor, target: Tensor, threshold: Tensor) -> Tensor:
    """2(√(d² + c²) − c): pseudo-Huber that turns into twice the absolute error, as kohya's "smooth_l1"."""
    return 2 * (((prediction - target) ** 2 + threshold**2).sqrt() - threshold)


FUNCTIONS: dict[LossFunction, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "l2": squared,
    "l1": absolute,
    "huber": huber,
    "smooth_l1": smooth_absolute,
}


def loss_per_image(
    prediction: Tensor,
    target: Tensor,
    function: LossFunction,
    threshold: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Loss of each picture, [batch], in float32. threshold: [batch], used by huber and smooth_l1.

    mask: [batch, 1, height, width], how much each place counts. As in kohya the mean is over all places, masked ones
    too, so that a small subject pulls less than a large one.
    """
    if threshold is None:
        threshold = torch.ones(len(target), device=target.device)
    each = FUNCTIONS[function](prediction.float(), target.float(), threshold.view(-1, 1, 1, 1))
    if mask is not None:
        each = each * mask
    return each.mean(dim=(1, 2, 3))


def huber_threshold(
    timesteps: Tensor, alphas_cumprod: Tensor, schedule: HuberSchedule, threshold: float, scale: float = 1.0
) -> Tensor:
    """Where squared turns into absolute, for each timestep, [batch]. Khrapov et al. 2024, section 4.

    alphas_cumprod: the whole table, [1000]. `scale` multiplies the loss' onset; 1 in the paper.
    """
    at = alphas_cumprod[timesteps]
    if schedule == "constant":
        return torch.full_like(at, threshold * scale)
    if schedule == "exponential":
        rate = -torch.log(torch.tensor(threshold, dtype=at.dtype)) / len(alphas_cumprod)
        return torch.exp(-rate * timesteps) * scale
    sigmas = ((1.0 - at) / at).sqrt()
    return (1 - threshold) / (1 + sigmas) ** 2 + threshold


def min_snr_weight(snr: Tensor, gamma: float, prediction_type: PredictionType) -> Tensor:
    """Weight of each picture, [batch]. Hang et al. 2023 (arXiv:2303.09556), equation 9 (v-prediction: section 3.4)."""
    clamped = snr.clamp(max=gamma)
    return clamped / (snr + 1) if prediction_type == "v_prediction" else clamped / snr


def debiased_weight(snr: Tensor, prediction_type: PredictionType) -> Tensor:
    """Weight of each picture, [batch]. Yu et al. 2023 (arXiv:2310.08442), with kohya's ceiling of 1000 on the SNR."""
    snr = snr.clamp(max=1000)
    return 1 / (snr + 1) if prediction_type == "v_prediction" else snr.rsqrt()


def noise_prediction_share(snr: Tensor) -> Tensor:
    """What turns a v-prediction's squared error into that of the noise it implies, SNR / (SNR + 1), [batch].

    Salimans & Ho 2022 (arXiv:2202.00512), section 4: ε̂ − ε = √ᾱ (v̂ − v), and ᾱ = SNR / (SNR + 1). With kohya's ceiling
    of 1000 on the SNR.
    """
    snr = snr.clamp(max=1000)
    return snr / (snr + 1)


def weighted_loss_per_image(
    prediction: Tensor,
    target: Tensor,
    timesteps: Tensor,
    regularisation: Tensor,
    settings: LossSettings,
    *,
    alphas_cumprod: Tensor,
    snr: Tensor,
    prediction_type: PredictionType,
    mask: Tensor | None = None,
) -> Tensor:
    """Loss of each picture times its weights, [batch]; the mean is left to the caller.

    regularisation: [batch], true where the picture is there to keep the class as it was. alphas_cumprod, snr: [1000].
    mask: [batch, 1, height, width], 1 where the picture is to be learned and 0 where it is not.
    """
    if mask is not None:
        mask = settings.unmasked_weight + (1 - settings.unmasked_weight) * mask
    threshold = huber_threshold(timesteps, alphas_cumprod, settings.huber_schedule, settings.huber_threshold)
    loss = loss_per_image(prediction, target, settings.function, threshold, mask)
    loss = torch.where(regularisation, loss * settings.prior_weight, loss)
    if settings.minimum_snr_gamma is not None:
        loss = loss * min_snr_weight(snr[timesteps], settings.minimum_snr_gamma, prediction_type)
    if settings.scaled_like_noise_prediction:
        loss = loss * noise_prediction_share(snr[timesteps])
    if settings.v_prediction_like > 0:
        loss = loss + loss / noise_prediction_share(snr[timesteps]) * settings.v_prediction_like
    if settings.debiased:
        loss = loss * debiased_weight(snr[timesteps], prediction_type)
    return loss
