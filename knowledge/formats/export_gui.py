"""Our config as a form of kohya_ss: sd-scripts' options under the form's names, with its 0 for what is not set."""

from __future__ import annotations

import json
from typing import Any

from knowledge.config import TrainingConfig
from knowledge.formats.export import Exported, Lost, to_sd_scripts
from knowledge.formats.kohya_gui import ARGUMENTS, RENAMED

KINDS = {
    "lora": "Standard",
    "locon": "Kohya LoCon",
    "dylora": "LyCORIS/DyLoRA",
    "dora": "LyCORIS/LoCon",
    "loha": "LyCORIS/LoHa",
    "lokr": "LyCORIS/LoKr",
    "glora": "LyCORIS/GLoRA",
    "oft": "LyCORIS/Diag-OFT",
    "boft": "LyCORIS/BOFT",
    "ia3": "LyCORIS/iA3",
    "full": "LyCORIS/Native Fine-Tuning",
}
RATES = ("learning_rate", "text_encoder_lr", "network_train_unet_only", "network_train_text_encoder_only")


def to_kohya_gui(config: TrainingConfig, stem: str = "kohya_ss") -> Exported:
    """A form file and the dataset file that it names."""
    written = to_sd_scripts(config, stem)
    options, lost = dict(written.options), list(written.lost)
    theirs = {option: field for field, option in RENAMED.items()}
    algorithm = config.network.algorithm
    form: dict[str, Any] = {
        "LoRA_type": KINDS[algorithm],
        "sdxl": config.base_model.family == "sdxl",
        "xformers": "sdpa",
    }
    # Its form has a field for the block size of LyCORIS' DyLoRA alone, which is the same number.
    fields = (
        {argument: field for field, argument in ARGUMENTS.items()}
        | {"unit": "unit"}
        | {"loraplus_lr_ratio": "loraplus_lr_ratio"}
    )
    for item in options.pop("network_args", []):
        key, _, value = item.partition("=")
        if key in fields:
            form[fields[key]] = _typed(value)
    if algorithm == "lokr" and config.network.lokr_full_matrix:
        lost.append(Lost("network.lokr_full_matrix", True, "The form has no field for it."))
    if algorithm == "dora":
        form |= {"LyCORIS_preset": "attn-mlp", "dora_wd": True}
        why = (
            "The form cannot choose the side: DoRA takes its norm over the outputs there, which ComfyUI renders wrong."
        )
        lost.append(Lost("network.algorithm", algorithm, why))
    form |= _rates(config) | _noise(config, lost)
    warmup = options.pop("lr_warmup_steps", 0)
    form |= {"lr_warmup": warmup * 100} if warmup < 1 else {"lr_warmup": 0, "lr_warmup_steps": warmup}
    if "max_train_epochs" in options:
        form["epoch"] = options["max_train_epochs"]
    form["optimizer_args"] = " ".join(options.pop("optimizer_args", []))
    prompts = written.files.get(f"{stem}.prompts.txt", "")
    options.pop("sample_prompts", None)
    if prompts:
        form["sample_prompts"] = prompts
    for key, value in options.items():
        if key not in (*RATES, "network_module", *form):
            form[theirs.get(key, key)] = value
    files = {f"{stem}.json": json.dumps(form, indent=2, ensure_ascii=False) + "\n"}
    files |= {name: text for name, text in written.files.items() if name.endswith(".dataset.toml")}
    how = f"In kohya_ss: LoRA, Configuration, open {stem}.json; give dataset_config its full path."
    return Exported(files, form, written.dataset, tuple(lost), how)


def _typed(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(value, value)


def _rates(config: TrainingConfig) -> dict[str, Any]:
    """A part is trained alone when it has a rate and the other has none; two zeros mean learning_rate for both."""
    rate, text = config.optimizer.learning_rate, config.optimizer.text_encoder_learning_rate
    network = config.network
    if not network.train_text_encoder:
        return {"learning_rate": rate, "unet_lr": rate, "text_encoder_lr": 0}
    if not network.train_unet:
        return {"learning_rate": rate, "unet_lr": 0, "text_encoder_lr": text or rate}
    if text is None:
        return {"learning_rate": rate, "unet_lr": 0, "text_encoder_lr": 0}
    return {"learning_rate": rate, "unet_lr": rate, "text_encoder_lr": text}


def _noise(config: TrainingConfig, lost: list[Lost]) -> dict[str, Any]:
    """The form has either a noise offset or multi-resolution noise."""
    noise = config.noise
    if noise.multires_iterations and noise.offset:
        lost.append(
            Lost("noise.multires_iterations", noise.multires_iterations, "The form has it or the offset, not both.")
        )
    return {"noise_offset_type": "Multires" if noise.multires_iterations and not noise.offset else "Original"}
