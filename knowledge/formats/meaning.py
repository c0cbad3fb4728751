"""Settings that say nothing in a given config, since another one switches off what would read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from knowledge.config import CONVOLUTIONS_TOO, TrainingConfig, fields, value_of


def _under(name: str, *values: object) -> Callable[[TrainingConfig], bool]:
    return lambda config: value_of(config, name) in values


def _with(name: str) -> Callable[[TrainingConfig], bool]:
    return lambda config: bool(value_of(config, name))


def _convolutions(config: TrainingConfig) -> bool:
    return config.network.adapts_convolutions


def _masked(config: TrainingConfig) -> bool:
    return config.dataset.alpha_masks or any(folder.masks for folder in config.dataset.folders)


def _regularised(config: TrainingConfig) -> bool:
    return any(folder.regularisation for folder in config.dataset.folders)


READ: Mapping[str, Callable[[TrainingConfig], bool]] = {
    "network.convolutions": _under("network.algorithm", *CONVOLUTIONS_TOO),
    **dict.fromkeys(
        ("network.conv_rank", "network.conv_alpha", "network.conv_block_ranks", "network.conv_block_alphas"),
        _convolutions,
    ),
    "network.lokr_factor": _under("network.algorithm", "lokr"),
    "network.lokr_full_matrix": _under("network.algorithm", "lokr"),
    "network.dylora_block_size": _under("network.algorithm", "dylora"),
    "network.block_rate_threshold": _with("network.block_rates"),
    "network.text_encoder_share": _with("network.train_text_encoder"),
    "network.rank_from_start": _with("network.start_from"),
    "optimizer.text_encoder_learning_rate": _with("network.train_text_encoder"),
    "optimizer.text_encoder_2_learning_rate": _with("network.train_text_encoder"),
    "schedule.cycles": _under("schedule.scheduler", "cosine_with_restarts"),
    "schedule.power": _under("schedule.scheduler", "polynomial"),
    "schedule.decay": _under("schedule.scheduler", "warmup_stable_decay"),
    "schedule.minimum_ratio": lambda config: config.schedule.scheduler not in ("constant", "adafactor"),
    "schedule.warmup_init": _under("schedule.scheduler", "adafactor"),
    "ema.every_steps": _with("ema.decay"),
    "ema.saved": _with("ema.decay"),
    "loss.huber_threshold": _under("loss.function", "huber", "smooth_l1"),
    "loss.huber_schedule": _under("loss.function", "huber", "smooth_l1"),
    "loss.prior_weight": _regularised,
    "loss.unmasked_weight": _masked,
    "noise.offset_random": _with("noise.offset"),
    "noise.offset_adaptive": _with("noise.offset"),
    "noise.multires_discount": _with("noise.multires_iterations"),
    **dict.fromkeys([name for name in fields() if name.startswith("dataset.bucket_")], _with("dataset.buckets")),
    **dict.fromkeys(
        [name for name in fields() if name.startswith("sampling.") and name != "sampling.prompts"],
        _with("sampling.prompts"),
    ),
    "memory.cache_location": lambda config: config.memory.cache_latents or config.memory.cache_text_encoder_outputs,
    "validation.every_epochs": _with("validation.share"),
    "validation.every_steps": _with("validation.share"),
    "dataset.goal": lambda config: False,
}
"""When a setting is read, for those that not every training reads. dataset.goal only chooses what is recommended."""


def idle(config: TrainingConfig) -> set[str]:
    """The settings that this config sets in vain: whatever they say, the training is the same."""
    return {name for name, read in READ.items() if not read(config)}
