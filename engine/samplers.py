"""The ways to draw a picture step by step: diffusers' schedulers, set up as drawing programs set them up."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knowledge.config import PredictionType, Sampler

LINSPACE: dict[str, Any] = {"timestep_spacing": "linspace"}
MULTISTEP, SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
PLUS, STOCHASTIC = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
KARRAS = {"use_karras_sigmas": True}

SAMPLERS: dict[Sampler, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", LINSPACE),
    "lms_karras": ("LMSDiscreteScheduler", LINSPACE | KARRAS),
    "euler": ("EulerDiscreteScheduler", LINSPACE),
    "euler_karras": ("EulerDiscreteScheduler", LINSPACE | KARRAS),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", LINSPACE),
    "heun": ("HeunDiscreteScheduler", LINSPACE),
    "dpm2": ("KDPM2DiscreteScheduler", LINSPACE),
    "dpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", LINSPACE),
    # diffusers ends this older form at the smallest noise instead of at none: at none it divides by zero
    "dpm_solver": (MULTISTEP, LINSPACE | {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpmpp_2m": (MULTISTEP, LINSPACE | PLUS),
    "dpmpp_2m_karras": (MULTISTEP, LINSPACE | PLUS | KARRAS),
    "dpmpp_2m_sde": (MULTISTEP, LINSPACE | STOCHASTIC),
    "dpmpp_2m_sde_karras": (MULTISTEP, LINSPACE | STOCHASTIC | KARRAS),
    "dpmpp_2s": (SINGLESTEP, PLUS),
    "dpmpp_sde": (SINGLESTEP, STOCHASTIC),
    "dpmpp_sde_karras": (SINGLESTEP, STOCHASTIC | KARRAS),
    "deis": ("DEISMultistepScheduler", LINSPACE),
    "unipc": ("UniPCMultistepScheduler", LINSPACE),
    "unipc_karras": ("UniPCMultistepScheduler", LINSPACE | KARRAS),
    "sa_solver": ("SASolverScheduler", LINSPACE),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
"""The class in diffusers that each sampler is, and how it is set up.

Left out are those that only models of their own kind can be drawn with (EDM, consistency, flow matching), IPNDM, which
knows no v-prediction, and DPMSolverSDE, whose noise cannot be drawn from a given generator.
"""


def scheduler(sampler: Sampler, snr: Tensor, prediction_type: PredictionType, *, zero_terminal_snr: bool) -> Any:
    """The diffusers scheduler of this sampler for a model's noise schedule and kind of prediction.

    snr: [timesteps], of the schedule before any zero terminal.
    """
    import diffusers

    name, options = SAMPLERS[sampler]
    chosen: type = getattr(diffusers, name)
    signal = snr.double().cpu().numpy()
    alphas_cumprod = signal / (1 + signal)
    betas = 1 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])
    zero_terminal = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero_terminal_snr else {}
    offset = {"steps_offset": 1} if "steps_offset" in inspect.signature(chosen).parameters else {}
    return chosen(
        num_train_timesteps=len(betas),
        trained_betas=betas.astype(np.float32),
        prediction_type=prediction_type,
        **offset | options | zero_terminal,
    )


def model_input(steps: Any, latents: Tensor, timestep: Tensor) -> Tensor:
    """What the model is shown of the latents; flow-matching schedulers show them as they are."""
    shown: Tensor = steps.scale_model_input(latents, timestep) if hasattr(steps, "scale_model_input") else latents
    return shown


def stepped(steps: Any, prediction: Tensor, timestep: Tensor, latents: Tensor, generator: torch.Generator) -> Tensor:
    """The latents one step further; samplers that add fresh noise draw it from the generator."""
    fresh = {"generator": generator} if "generator" in inspect.signature(steps.step).parameters else {}
    following: Tensor = steps.step(prediction, timestep, latents, return_dict=False, **fresh)[0]
    return following
