"""Makes everything the pocket ships: `python -m engine.pocket.build --merges bpe_simple_vocab_16e6.txt.gz`.

Draws the scenes, trains the VAE, then UNet and text encoder, writes model/, demo/, heldout/, known/, grid.png and
model/quality.json. It takes a few hours on two cores, keeps its state under --work and goes on from there when
interrupted. The same library versions, processor type and thread count give the same files; others give a sibling.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from transformers import CLIPTokenizer

from engine.pocket import DEMO_FOLDER, HELD_OUT_FOLDER, KNOWN_FOLDER, MODEL_FOLDER
from engine.pocket.measure import denoising_loss, token_ids
from engine.pocket.scenes import Scene, captioned_creature, captioned_scene
from engine.pocket.tokenizer import write_tokenizer
from engine.pocket.training import (
    Denoiser,
    DenoiserRecipe,
    VaeRecipe,
    encode_scenes,
    train_denoiser,
    train_vae,
)

THREADS = 1  # on shared cores two threads wait for each other
VALIDATION_SEEDS = range(20_000_000, 20_000_064)
DEMO_SEEDS = range(12)
HELD_OUT_SEEDS = range(101, 107)
KNOWN_SEEDS = range(5_000_000, 5_000_024)
GUIDANCE_SCALE = 5.0
SAMPLING_STEPS = 20
CROWDED = "two three small left right"  # words of the scenes that the text encoder meets last
LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow")

GRID = [
    Scene("circle", "red", "on a black background"),
    Scene("square", "blue", "on grass"),
    Scene("triangle", "green", "on a beach"),
    Scene("star", "yellow", "in the night sky"),
    Scene("heart", "pink", "on a white background"),
    Scene("face", "yellow", "on grass"),
    Scene("cat", "orange", "on a beach"),
    Scene("fish", "purple", "in the sea"),
    Scene("house", "white", "on grass"),
    Scene("car", "red", "on a beach"),
    Scene("tree", "green", "on grass"),
    Scene("boat", "red", "in the sea"),
    Scene("flower", "pink", "on a black background"),
    Scene("mushroom", "red", "on a white background"),
    Scene("star", "blue", "in the night sky", count=2),
    Scene("fish", "orange", "in the sea", count=3),
    Scene("cat", "purple", "on grass", size="big"),
    Scene("boat", "white", "in the night sky", size="small"),
    Scene("square", "orange", "on a beach", place="on the left"),
    Scene("heart", "green", "in the sea", place="on the right"),
    Scene("tree", "blue", "on a white background", size="big"),
    Scene("car", "yellow", "on a black background", size="big"),
    Scene("house", "purple", "in the night sky"),
    Scene("face", "pink", "in the sea", size="big"),
]


def trained_vae(work: Path, tokenizer: CLIPTokenizer, log: Path) -> AutoencoderKL:
    """The VAE, trained or read back, with its scaling factor."""
    folder = work / "vae"
    if not (folder / "config.json").exists():
        vae = train_vae(VaeRecipe(), work / "vae.state", log)
        latents = encode_scenes(vae, tokenizer, 1000)["posteriors"][:, 0].float()
        vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
        vae.save_pretrained(folder)
    return AutoencoderKL.from_pretrained(folder)


def encoded_scenes(work: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, count: int) -> dict[str, torch.Tensor]:
    """Posteriors and token ids of the training scenes, computed once."""
    file = work / "scenes.pt"
    if not file.exists():
        torch.save(encode_scenes(vae, tokenizer, count), file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    scenes: dict[str, Tensor] = torch.load(file)
    return scenes


def pipeline_of(denoiser: Denoiser, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """The parts as one Stable Diffusion pipeline, with Stable Diffusion's schedule and no safety checker."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def replace_folder(part: Path, folder: Path) -> None:
    """`part`, readable by everyone, takes the place of `folder`; a reader sees one or the other."""
    for path in [part, *part.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The shipped model in float32, silent."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def sample(pipeline: StableDiffusionPipeline, captions: list[str], seed: int = 0) -> list[Image.Image]:
    """One picture per caption; the noise of a caption depends on its position and the seed alone."""
    generators = [torch.Generator().manual_seed(seed * 1000 + number) for number in range(len(captions))]
    result = pipeline(captions, num_inference_steps=SAMPLING_STEPS, guidance_scale=GUIDANCE_SCALE, generator=generators)
    pictures: list[Image.Image] = result.images
    return pictures


def captioned_grid(pictures: list[Image.Image], captions: list[str], columns: int = 6, size: int = 160) -> Image.Image:
    """Pictures enlarged without smoothing, each with its caption below."""
    font = ImageFont.load_default(11)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (size + 8) + 8, rows * (size + 40) + 8), (244, 244, 244))
    draw = ImageDraw.Draw(sheet)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = 8 + number % columns * (size + 8), 8 + number // columns * (size + 40)
        sheet.paste(picture.resize((size, size), Image.Resampling.NEAREST), (x, y))
        words, lines = caption.split(" "), [""]
        for word in words:
            if font.getlength(f"{lines[-1]} {word}") > size:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        draw.multiline_text((x, y + size + 3), "\n".join(lines), fill=(40, 40, 40), font=font, spacing=2)
    return sheet


def draw_folder(folder: Path, draw: Callable[[int], tuple[Image.Image, str]], seeds: range) -> None:
    """One PNG and one caption file for each seed."""
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    for number, seed in enumerate(seeds, start=1):
        picture, caption = draw(seed)
        picture.save(part / f"{number:02}.png", optimize=True)
        (part / f"{number:02}.txt").write_text(caption + "\n")
    replace_folder(part, folder)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def quality(pipeline: StableDiffusionPipeline) -> dict[str, float]:
    """Denoising losses of the base model, on scenes it has not seen and on the creature it does not know."""
    scenes = [captioned_scene(seed) for seed in VALIDATION_SEEDS]
    creatures = [captioned_creature(seed) for seed in HELD_OUT_SEEDS]
    parts = (pipeline.unet, pipeline.text_encoder, pipeline.vae, pipeline.tokenizer)
    scene_pictures, scene_captions = zip(*scenes, strict=True)
    creature_pictures, creature_captions = zip(*creatures, strict=True)
    return {
        "scenes_loss": round(denoising_loss(*parts, scene_pictures, scene_captions), 4),
        "scenes_loss_without_captions": round(denoising_loss(*parts, scene_pictures, [""] * len(scenes)), 4),
        "creature_loss": round(denoising_loss(*parts, creature_pictures, creature_captions), 4),
    }


def write_model(pipeline: StableDiffusionPipeline, tokenizer_folder: Path, folder: Path) -> None:
    """The diffusers folder in float16, and quality.json with hashes, measures, recipes and versions."""
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        model.half()
    pipeline.save_pretrained(part, safe_serialization=True)
    config_file = part / "text_encoder" / "config.json"
    config = json.loads(config_file.read_text()) | {"dtype": "float32"}  # else transformers computes in float16
    config_file.write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(part / "tokenizer")
    shutil.copytree(tokenizer_folder, part / "tokenizer")  # vocabulary and merges, which every version reads
    report = {
        "measured": quality(load_pipeline(part)),
        "vae": asdict(VaeRecipe()),
        "denoiser": asdict(DenoiserRecipe()),
        "threads": THREADS,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "sha256": {str(f.relative_to(part)): sha256(f) for f in sorted(part.rglob("*")) if f.is_file()},
    }
    (part / "quality.json").write_text(json.dumps(report, indent=2) + "\n")
    replace_folder(part, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and write the pocket model.")
    parser.add_argument("--merges", type=Path, required=True, help="bpe_simple_vocab_16e6.txt.gz of open_clip_torch")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "pocket-build")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(THREADS)
    log = options.work / "log.jsonl"
    recipe = DenoiserRecipe()

    write_tokenizer(options.merges, options.work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(options.work / "tokenizer")
    vae = trained_vae(options.work, tokenizer, log)
    scenes = encoded_scenes(options.work, vae, tokenizer, recipe.scenes)
    denoiser = train_denoiser(
        recipe,
        scenes,
        token_ids(tokenizer, [""])[0],
        torch.tensor(tokenizer(CROWDED, add_special_tokens=False).input_ids),
        vae.config.scaling_factor,
        options.work / "denoiser.state",
        log,
    )
    write_model(pipeline_of(denoiser, vae, tokenizer), options.work / "tokenizer", MODEL_FOLDER)
    draw_folder(DEMO_FOLDER, captioned_creature, DEMO_SEEDS)
    draw_folder(HELD_OUT_FOLDER, captioned_creature, HELD_OUT_SEEDS)
    draw_folder(KNOWN_FOLDER, captioned_scene, KNOWN_SEEDS)
    captions = [scene.caption() for scene in GRID]
    captioned_grid(sample(load_pipeline(MODEL_FOLDER), captions), captions).save(Path(__file__).parent / "grid.png")


if __name__ == "__main__":
    main()
