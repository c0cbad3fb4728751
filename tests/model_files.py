"""Headers of models of every kind, as files that hubs on this machine offer, and what is done with an offer."""

from __future__ import annotations

from engine.acquire.models import bring_in, recognise
from engine.models.detect import TELLING_BIAS

UNET = "model.diffusion_model."
SDXL = {
    f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3),
    f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (4, 2048),
    f"{UNET}label_emb.0.0.weight": (4, 2816),
    f"{UNET}out.0.weight": (300, 1000),
}
SD15 = {
    f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3),
    f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (4, 768),
    f"{UNET}out.0.weight": (300, 1000),
}
INPAINTING = {**SD15, f"{UNET}input_blocks.0.0.weight": (8, 9, 3, 3)}
NOOB = {**SDXL, "v_pred": (0,), "ztsnr": (0,)}
SD2 = {
    f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3),
    f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (4, 1024),
    f"{UNET}{TELLING_BIAS}": (320,),
    f"{UNET}out.0.weight": (300, 1000),
}
VAE = {"decoder.conv_in.weight": (8, 4, 3, 3), "decoder.up_blocks.0.resnets.0.conv1.weight": (8, 8)}
LORA = {"lora_unet_x.lora_down.weight": (4, 8), "lora_unet_x.lora_up.weight": (8, 4)}


def fetched(offer, folder):
    return bring_in(recognise(offer, folder), folder)


def left_in(folder):
    """Everything in the models folder but the lock of its manifest."""
    return sorted(path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file())


def diffusers_folder(source):
    return {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()}
