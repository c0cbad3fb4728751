import json
from pathlib import Path

import pytest
import torch

from engine import diffusion
from engine.loss import (
    debiased_weight,
    huber_threshold,
    loss_per_image,
    min_snr_weight,
    noise_prediction_share,
    weighted_loss_per_image,
)
from knowledge.config import HuberSchedule, LossSettings

DATA = Path(__file__).parent.parent / "data"
WEIGHTS = json.loads((DATA / "loss_weights.json").read_text())
LOSSES = json.loads((DATA / "losses.json").read_text())
ALPHAS = diffusion.alphas_cumprod()
SNR = diffusion.signal_to_noise(ALPHAS)
AT = torch.tensor(WEIGHTS["timesteps"])
PREDICTION = {"eps": "epsilon", "v": "v_prediction"}


def close(ours: torch.Tensor, recorded: list[float]) -> None:
    torch.testing.assert_close(ours, torch.tensor(recorded), rtol=1e-6, atol=0)


@pytest.mark.parametrize("gamma", [1, 5, 20])
@pytest.mark.parametrize("kind", PREDICTION)
def test_min_snr_weight_is_kohyas(gamma: int, kind: str):
    close(min_snr_weight(SNR[AT], gamma, PREDICTION[kind]), WEIGHTS[f"min_snr_{gamma}_{kind}"])


def test_min_snr_weight_never_exceeds_one():
    for kind in PREDICTION.values():
        assert min_snr_weight(SNR, 5.0, kind).max() <= 1


@pytest.mark.parametrize("kind", PREDICTION)
def test_debiased_weight_is_kohyas(kind: str):
    close(debiased_weight(SNR[AT], PREDICTION[kind]), WEIGHTS[f"debiased_{kind}"])


def test_v_like_weights_are_kohyas():
    close(noise_prediction_share(SNR[AT]), WEIGHTS["scale_v_pred_like_noise"])
    epsilon, v = "epsilon", "v_prediction"
    for settings, kind, recorded in (
        (LossSettings(scaled_like_noise_prediction=True), v, "scale_v_pred_like_noise"),
        (LossSettings(v_prediction_like=0.1), epsilon, "v_pred_like_loss_0.1"),
        (LossSettings(v_prediction_like=1.0), epsilon, "v_pred_like_loss_1.0"),
        (LossSettings(minimum_snr_gamma=5.0, debiased=True), epsilon, "combined_minsnr5_then_debiased_eps"),
        (
            LossSettings(minimum_snr_gamma=5.0, scaled_like_noise_prediction=True, v_prediction_like=0.2),
            v,
            "combined_minsnr5v_scalev_vlike0.2",
        ),
    ):
        # Pictures that are off by one everywhere have a loss of 1, so what comes out is the weight.
        ours = weighted_loss_per_image(
            torch.ones(len(AT), 4, 2, 2),
            torch.zeros(len(AT), 4, 2, 2),
            AT,
            torch.zeros(len(AT), dtype=torch.bool),
            settings,
            alphas_cumprod=ALPHAS,
            snr=SNR,
            prediction_type=kind,
        )
        close(ours, WEIGHTS[recorded])


def test_the_error_of_v_scaled_is_the_error_of_the_noise_it_implies():
    # v = √ᾱ ε − √(1−ᾱ) x₀, so ε = √ᾱ v + √(1−ᾱ) x_t: an error in v reaches ε times √ᾱ.
    generator = torch.Generator().manual_seed(0)
    noisy, v, wrong_v = (torch.randn(len(AT), 4, 2, 2, generator=generator) for _ in range(3))
    alpha_bar = ALPHAS[AT].view(-1, 1, 1, 1)
    noise, wrong_noise = (alpha_bar.sqrt() * each + (1 - alpha_bar).sqrt() * noisy for each in (v, wrong_v))
    scaled = loss_per_image(wrong_v, v, "l2") * noise_prediction_share(SNR[AT])
    torch.testing.assert_close(scaled[2:], loss_per_image(wrong_noise, noise, "l2")[2:], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES["thresholds"])
def test_huber_threshold_is_kohyas(name: str):
    schedule, threshold, scale = name.split("_")
    ours = huber_threshold(
        torch.tensor(LOSSES["threshold_timesteps"]), ALPHAS, schedule, float(threshold[1:]), float(scale[5:])
    )
    close(ours, LOSSES["thresholds"][name])


@pytest.mark.parametrize("schedule", ["exponential", "snr"])
def test_a_scheduled_huber_threshold_falls_from_the_clean_views_to_the_noisy_ones(schedule: HuberSchedule):
    """As the entry of loss.huber_schedule says."""
    alphas_cumprod = torch.linspace(0.999, 0.005, 1000)
    clean, middle, noisy = huber_threshold(torch.tensor([0, 500, 999]), alphas_cumprod, schedule, 0.1).tolist()
    assert 1 >= clean > middle > noisy >= 0.1
    assert clean == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    "row", LOSSES["losses"], ids=lambda row: "-".join(str(v) for k, v in row.items() if k != "per_sample")
)
def test_every_loss_is_kohyas(row: dict):
    prediction, target = (torch.tensor(LOSSES[name]).view(LOSSES["shape"]) for name in ("pred", "target"))
    threshold = huber_threshold(
        torch.tensor(LOSSES["timesteps"]),
        ALPHAS,
        row.get("schedule") or "constant",
        row.get("c") or 0.1,
        row.get("scale") or 1.0,
    )
    close(loss_per_image(prediction, target, row["loss"], threshold), row["per_sample"])


def test_a_loss_is_one_number_per_picture():
    # Picture 1 is off by 2 everywhere: squared 4, absolute 2. Picture 2 is exact.
    prediction = torch.stack([torch.full((4, 2, 2), 2.0), torch.zeros(4, 2, 2)])
    target = torch.zeros(2, 4, 2, 2)
    assert loss_per_image(prediction, target, "l2").tolist() == [4, 0]
    assert loss_per_image(prediction, target, "l1").tolist() == [2, 0]


def weighted(settings: LossSettings, regularisation: bool = False) -> float:
    prediction, target = torch.full((1, 4, 2, 2), 2.0), torch.zeros(1, 4, 2, 2)
    return weighted_loss_per_image(
        prediction,
        target,
        torch.tensor([0]),
        torch.tensor([regularisation]),
        settings,
        alphas_cumprod=ALPHAS,
        snr=SNR,
        prediction_type="epsilon",
    ).item()


def test_prior_weight_touches_regularisation_pictures_only():
    assert weighted(LossSettings(prior_weight=0.25)) == 4
    assert weighted(LossSettings(prior_weight=0.25), regularisation=True) == 1


def test_minimum_snr_gamma_weighs_the_loss():
    # SNR at timestep 0 is 1175.44: 4 · 5 / 1175.44 = 0.017015
    assert weighted(LossSettings(minimum_snr_gamma=5.0)) == pytest.approx(4 * 5 / 1175.4405, rel=1e-5)


def test_the_loss_function_and_its_threshold_are_the_settings_own():
    # constant threshold 1: 2 · (√(4 + 1) − 1) = 2.4721; smooth_l1 with threshold 0.5: 2 · (√4.25 − 0.5) = 3.1231
    huber = LossSettings(function="huber", huber_schedule="constant", huber_threshold=1.0)
    smooth = LossSettings(function="smooth_l1", huber_schedule="constant", huber_threshold=0.5)
    assert weighted(huber) == pytest.approx(2.472136, rel=1e-6)
    assert weighted(smooth) == pytest.approx(3.123106, rel=1e-6)
