"""OneTrainer's settings of the network: what is trained, of which rank, in which layers."""

from __future__ import annotations

from pathlib import Path

from knowledge.config import CONV_ALGORITHMS, CONVOLUTIONS_TOO
from knowledge.formats.kohya_network import LARGEST_RANK
from knowledge.formats.translation import Translation
from knowledge.formats.values import as_bool, as_number

ALGORITHMS = {"LORA": "lora", "LOHA": "loha", "LOKR": "lokr"}


LAYERS = {"attn-mlp": "attentions", "attn-only": "attn", "full": ""}
"""Its presets, and the patterns by which layers of these models are chosen in training: what a name has to hold."""


def _chosen_layers(job: Translation) -> str:
    """The preset that its pattern is, or the pattern. Training reads the pattern, which its window fills in."""
    preset, pattern = str(job.get("layer_filter_preset", "full")), str(job.get("layer_filter", ""))
    if pattern and not job.on("layer_filter_regex"):
        return next((name for name, layers in LAYERS.items() if layers == pattern.strip()), pattern)
    return pattern or preset


def read_network(job: Translation, beside: Path) -> None:
    kind = str(job.get("peft_type", "LORA"))
    ours = ALGORITHMS.get(kind)
    chosen = _chosen_layers(job)
    everything = chosen == "full"
    if ours == "lora" and everything:
        ours = "locon"
    if as_bool(job.get("lora_decompose")) and kind == "LORA":
        ours = "dora"
        job.mapped("lora_decompose", "network.algorithm", "dora")
    elif as_bool(job.get("lora_decompose")):
        job.no_effect("lora_decompose", "Only plain LoRA reads it.")
    if "peft_type" in job.source:
        otherwise = f"It trains {kind}. A plain LoRA is trained here."
        job.mapped_if_known("peft_type", "network.algorithm", ours, otherwise)
    elif ours != "dora":
        job.implied["network.algorithm"] = ours or "lora"
    if "layer_filter_preset" in job.source:
        if ours in CONV_ALGORITHMS:
            job.changed(
                "layer_filter_preset",
                "network.algorithm",
                "locon",
                "All layers there; here LoCon, which adds convolutions.",
            )
        elif everything and ours in CONVOLUTIONS_TOO:
            why = "All layers there; here the convolutions are added."
            job.changed("layer_filter_preset", "network.convolutions", True, why)
        elif everything:
            why = "It adapts every layer. Here attention and feed-forward layers are adapted."
            job.unsupported("layer_filter_preset", why)
        elif chosen == "attn-only":
            job.mapped("layer_filter_preset", "network.attention_only", True)
        elif chosen == "attn-mlp":
            job.mapped("layer_filter_preset", "network.attention_only", False)
        else:
            why = "It chooses layers by pattern. Here attention and feed-forward layers are adapted."
            job.unsupported("layer_filter_preset", why)
    elif chosen == "attn-only":
        job.implied["network.attention_only"] = True
    if chosen in LAYERS and "layer_filter" in job.source:
        job.no_effect("layer_filter", f"It is the pattern of its preset {chosen}.")
    if as_bool(job.get("lora_decompose_output_axis")):
        why = "It takes DoRA's norm over the outputs, which ComfyUI renders wrong. Here it is over the inputs."
        job.unsupported("lora_decompose_output_axis", why)
    rank_key, alpha_key = ("lokr_dim" if ours == "lokr" else "lora_rank"), "lora_alpha"
    for key in ("lora_rank", "lokr_dim"):
        if key in job.source:
            if key == rank_key and ours == "lokr" and (as_number(job.source[key]) or 0) > LARGEST_RANK:
                why = "So large a rank means whole matrices in LoKr; the largest here does the same."
                job.changed(key, "network.rank", LARGEST_RANK, why)
            elif key == rank_key:
                job.mapped(key, "network.rank", job.source[key])
            else:
                job.no_effect(key, f"{kind} does not read it.")
    if alpha_key in job.source:
        job.mapped(alpha_key, "network.alpha", job.source[alpha_key])
    if "lokr_decompose_factor" in job.source:
        if ours == "lokr":
            job.mapped("lokr_decompose_factor", "network.lokr_factor", job.source["lokr_decompose_factor"])
        else:
            job.no_effect("lokr_decompose_factor", "Only LoKr reads it.")
    if everything and ours in CONVOLUTIONS_TOO:
        job.implied["network.convolutions"] = True
    if everything:
        job.implied["network.conv_rank"] = job.values.get("network.rank", 16)
        job.implied["network.conv_alpha"] = job.values.get("network.alpha", 1.0)
    if ours == "lokr":
        job.implied["network.lokr_factor"] = -1
        if "lokr_full_matrix" in job.source:
            job.mapped("lokr_full_matrix", "network.lokr_full_matrix", as_bool(job.source["lokr_full_matrix"]))
    for key in list(job.source):
        if key.startswith(("lokr_", "oft_")) and not job.done(key) and ours != "lokr":
            job.no_effect(key, f"{kind} does not read it.")
    for part, name in (("unet", "network.train_unet"), ("text_encoder", "network.train_text_encoder")):
        if f"{part}.train" in job.source:
            job.mapped(f"{part}.train", name, job.source[f"{part}.train"])
    _stop_text_encoder(job)
    _dropouts(job, ours, kind)
    second = job.source.get("text_encoder_2.train")
    if second is not None:
        first = as_bool(job.get("text_encoder.train", True))
        if as_bool(second) == first or job.values.get("base_model.family", "sd15") != "sdxl":
            job.no_effect("text_encoder_2.train", "It says the same as for the first, or there is only one.")
        else:
            job.unsupported("text_encoder_2.train", "It trains one of the two text encoders. Here it is both or none.")


def _stop_text_encoder(job: Translation) -> None:
    """When the text encoder stops learning; after 30 epochs there, unless the file says otherwise."""
    key, epochs = "text_encoder.stop_training_after", as_number(job.get("epochs", 100)) or 100
    after = as_number(job.get(key, 30))
    unit = str(job.get(f"{key}_unit", "EPOCH"))
    stops = bool(after) and unit != "NEVER" and not (unit == "EPOCH" and (after or 0) >= epochs)
    share = (after or 0) / epochs
    if key not in job.source:
        if stops and unit == "EPOCH":
            job.implied["network.text_encoder_share"] = share
    elif not stops:
        job.no_effect(key, "The text encoder is trained to the end.")
    elif unit == "EPOCH":
        job.changed(key, "network.text_encoder_share", share, "It counts epochs; here it is a share of the run.")
    else:
        job.unsupported(key, f"It counts {unit.lower()}s. Here the text encoder is trained to the end.")
    if f"{key}_unit" in job.source:
        job.no_effect(f"{key}_unit", "It is the unit of the number before.")


def _dropouts(job: Translation, ours: str | None, kind: str) -> None:
    share = as_number(job.get("dropout_probability"))
    if share is None:
        return
    if not share:
        job.no_effect("dropout_probability", "0 switches it off there.")
    elif ours in ("lora", "locon"):
        job.mapped("dropout_probability", "network.dropout", share)
    else:
        job.unsupported("dropout_probability", f"It leaves out something else for {kind}.")
