"""The pocket model's files, scenes and measured quality."""

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from engine.pocket import DEMO_FOLDER, HELD_OUT_FOLDER, KNOWN_FOLDER, MODEL_FOLDER
from engine.pocket.scenes import TRIGGER_WORD, captioned_creature, captioned_scene, clutter

QUALITY = json.loads((MODEL_FOLDER / "quality.json").read_text())


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(MODEL_FOLDER, local_files_only=True, safety_checker=None)


def test_every_model_file_has_the_recorded_hash():
    files = {path.relative_to(MODEL_FOLDER).as_posix() for path in MODEL_FOLDER.rglob("*") if path.is_file()}
    assert files - {"quality.json"} == set(QUALITY["sha256"])
    for name, expected in QUALITY["sha256"].items():
        assert hashlib.sha256((MODEL_FOLDER / name).read_bytes()).hexdigest() == expected, name


def test_the_pocket_adds_at_most_20_megabytes_to_the_wheel():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in MODEL_FOLDER.parent.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                wheel.write(path)
    assert archive.tell() <= 20_000_000


def test_the_folder_loads_as_a_stable_diffusion_pipeline(pipeline):
    assert type(pipeline.unet).__name__ == "UNet2DConditionModel"
    assert type(pipeline.vae).__name__ == "AutoencoderKL"
    assert type(pipeline.text_encoder).__name__ == "CLIPTextModel"
    assert type(pipeline.tokenizer).__name__.startswith("CLIPTokenizer")
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.safety_checker is None


def test_weights_load_back_without_missing_or_unexpected_keys():
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    _, report = CLIPTextModel.from_pretrained(MODEL_FOLDER / "text_encoder", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    _, report = UNet2DConditionModel.from_pretrained(MODEL_FOLDER, subfolder="unet", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_the_tokenizer_is_the_real_clip_tokenizer(pipeline):
    # as recorded from the tokenizer of Stable Diffusion 1.5
    assert pipeline.tokenizer("a photo of sks dog").input_ids == [49406, 320, 1125, 539, 48136, 1929, 49407]
    assert len(pipeline.tokenizer) == 49408


def test_the_base_knows_its_scenes_and_not_the_creature(pipeline):
    from engine.pocket.build import HELD_OUT_SEEDS, VALIDATION_SEEDS
    from engine.pocket.measure import denoising_loss

    parts = (pipeline.unet, pipeline.text_encoder, pipeline.vae, pipeline.tokenizer)
    measured = QUALITY["measured"]
    pictures, captions = zip(*(captioned_scene(seed) for seed in VALIDATION_SEEDS), strict=True)
    scenes_loss = denoising_loss(*parts, pictures, captions)
    assert scenes_loss == pytest.approx(measured["scenes_loss"], abs=2e-3)
    assert scenes_loss < measured["scenes_loss_without_captions"]
    pictures, captions = zip(*(captioned_creature(seed) for seed in HELD_OUT_SEEDS), strict=True)
    assert denoising_loss(*parts, pictures, captions) > 1.5 * scenes_loss


def test_a_seed_gives_the_same_picture_and_caption_twice():
    for draw in (captioned_scene, captioned_creature):
        (picture, caption), (again, caption_again) = draw(7), draw(7)
        assert picture.tobytes() == again.tobytes()
        assert caption == caption_again
    assert clutter(7).tobytes() == clutter(7).tobytes()


def test_the_trigger_word_is_in_every_creature_caption_and_in_no_scene_caption():
    assert all(TRIGGER_WORD in captioned_creature(seed)[1] for seed in range(60))
    assert not any(TRIGGER_WORD in captioned_scene(seed)[1] for seed in range(2000))


def test_the_demo_folders_are_what_the_scenes_draw():
    from PIL import Image

    from engine.pocket.build import DEMO_SEEDS, HELD_OUT_SEEDS, KNOWN_SEEDS

    for folder, draw, seeds in (
        (DEMO_FOLDER, captioned_creature, DEMO_SEEDS),
        (HELD_OUT_FOLDER, captioned_creature, HELD_OUT_SEEDS),
        (KNOWN_FOLDER, captioned_scene, KNOWN_SEEDS),
    ):
        pictures = sorted(folder.glob("*.png"))
        assert len(pictures) == len(list(folder.glob("*.txt"))) == len(seeds)
        for path, seed in zip(pictures, seeds, strict=True):
            picture, caption = draw(seed)
            assert Image.open(path).tobytes() == picture.tobytes()
            assert path.with_suffix(".txt").read_text().strip() == caption


def test_naming_the_folders_does_not_import_torch():
    code = "import sys, engine.pocket; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
