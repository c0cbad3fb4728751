"""Our config as a form of kohya_ss: sd-scripts' options under the form's names, with its 0 for what is not set.

What the form has no field for goes into its line for additional parameters, which stand above everything else.
"""

from __future__ import annotations

import json
from typing import Any

from knowledge.config import TrainingConfig
from knowledge.formats.export import Exported, to_sd_scripts
from knowledge.formats.kohya_gui import ARGUMENTS, RENAMED
from knowledge.formats.values import typed
from knowledge.formats.vocabulary import facts_of

LYCORIS_LORA = "LyCORIS/LoCon"
KINDS = {
    "lora": "Standard",
    "locon": "Kohya LoCon",
    "dylora": "Kohya DyLoRA",
    "dora": LYCORIS_LORA,
    "loha": "LyCORIS/LoHa",
    "lokr": "LyCORIS/LoKr",
    "glora": "LyCORIS/GLoRA",
    "oft": "LyCORIS/Diag-OFT",
    "boft": "LyCORIS/BOFT",
    "ia3": "LyCORIS/iA3",
    "full": "LyCORIS/Native Fine-Tuning",
}
NOT_OPTIONS = {"network_module", "network_args", "optimizer_args", "lr_warmup_steps", "sample_prompts"}
"""Options of sd-scripts that the form says in another way."""


def to_kohya_gui(config: TrainingConfig, stem: str = "kohya_ss") -> Exported:
    """A form file and the dataset file that it names."""
    written = to_sd_scripts(config, stem)
    options = dict(written.options)
    by_lycoris = options["network_module"] == "lycoris.kohya"
    form: dict[str, Any] = {
        "LoRA_type": LYCORIS_LORA
        if by_lycoris and config.network.algorithm == "lora"
        else KINDS[config.network.algorithm],
        "sdxl": config.base_model.family == "sdxl",
        "xformers": "sdpa",
    }
    fields, theirs = set(facts_of("kohya_gui")["fields"]), {option: field for field, option in RENAMED.items()}
    more: dict[str, Any] = {}
    form |= _network(options.get("network_args", []), fields, more)
    form |= _rates(config, options, more)
    form["noise_offset_type"] = _kind_of_noise(config)
    warmup = options.get("lr_warmup_steps", 0)
    form |= {"lr_warmup": warmup * 100} if warmup < 1 else {"lr_warmup": 0, "lr_warmup_steps": warmup}
    form["epoch"] = options.get("max_train_epochs", 1)
    form["optimizer_args"] = " ".join(options["optimizer_args"])
    prompts = written.files.get(f"{stem}.prompts.txt", "")
    if prompts:
        form["sample_prompts"] = prompts
    for key, value in options.items():
        field = theirs.get(key, key)
        if key in NOT_OPTIONS or field in form or key in ("text_encoder_lr", "network_train_unet_only"):
            continue
        if field in fields and not _hidden(field, value, form["noise_offset_type"]):
            form[field] = value
        elif key != "network_train_text_encoder_only":
            more[key] = value
    form["additional_parameters"] = " ".join(_words(more))
    files = {f"{stem}.json": json.dumps(form, indent=2, ensure_ascii=False) + "\n"}
    files |= {name: text for name, text in written.files.items() if name.endswith(".dataset.toml")}
    how = f"In kohya_ss: LoRA, Configuration, open {stem}.json; give dataset_config its full path."
    return Exported(files, form, written.dataset, written.lost, how)


def _network(arguments: list[str], fields: set[str], more: dict[str, Any]) -> dict[str, Any]:
    """The form's fields for the network's arguments; all of them in one more option where it lacks a field for one."""
    fields_of = {argument: field for field, argument in ARGUMENTS.items()} | {"unit": "unit"}
    form: dict[str, Any] = {}
    for item in arguments:
        key, _, value = item.partition("=")
        field = fields_of.get(key, key)
        if field in fields:
            form[field] = typed(value)
        elif key != "algo":
            more["network_args"] = arguments
    return form


def _rates(config: TrainingConfig, options: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """A part is trained alone when it has a rate and the other has none; two zeros mean learning_rate for both."""
    rate, text = config.optimizer.learning_rate, config.optimizer.text_encoder_learning_rate
    network = config.network
    if not network.train_text_encoder:
        return {"learning_rate": rate, "unet_lr": rate, "text_encoder_lr": 0}
    if not network.train_unet:
        if text is None:  # the form trains the text encoder alone only when it has a rate of its own
            more["network_train_text_encoder_only"] = True
            return {"learning_rate": rate, "unet_lr": 0, "text_encoder_lr": 0}
        return {"learning_rate": rate, "unet_lr": 0, "text_encoder_lr": text}
    if text is None:
        return {"learning_rate": rate, "unet_lr": 0, "text_encoder_lr": 0}
    return {"learning_rate": rate, "unet_lr": rate, "text_encoder_lr": text}


def _kind_of_noise(config: TrainingConfig) -> str:
    """The form reads either a noise offset or multi-resolution noise."""
    return "Multires" if config.noise.multires_iterations and not config.noise.offset else "Original"


def _hidden(field: str, value: Any, noise: str) -> bool:
    """Would the form not pass this on, though it has the field? It takes a seed of 0 for none."""
    return (field == "seed" and value == 0) or (field.startswith("multires_") and noise == "Original")


def _words(options: dict[str, Any]) -> list[str]:
    """Options as one types them; the form parts them at spaces, so no value has any."""
    words = []
    for key, value in options.items():
        words.append(f"--{key}")
        if value is not True:
            words += map(str, value) if isinstance(value, list) else [str(value)]
    return words
