"""Full-size SD 1.5, SD 2 and SDXL, with random weights, each train two steps at 256 pixels on the CPU. Run by hand:

    python tests/full_size.py [sd15] [sd2] [sdxl] [--folder DIR] [--precision bf16]

The models are built from the configurations that ship with the engine, written as single files in the original layout
(about 2, 3 and 7 GB), trained by `python -m engine`, and the files are loaded by diffusers and must change its
prediction. Needs about 16 GB of memory and 30 GB of disk for SDXL.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from engine.run_folder import RunFolder  # noqa: E402
from knowledge.config import TrainingConfig  # noqa: E402

FAMILIES = ("sd15", "sd2", "sdxl")
PICTURES = Path(__file__).parent / "data" / "pictures" / "10_sks toy"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="sd15, sd2, sdxl; all when none is named")
    parser.add_argument("--folder", type=Path, help="where to build; a temporary folder otherwise")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for family in options.families or FAMILIES:
            say(json.dumps(try_out(family, Path(folder) / family, options.precision), indent=2))


def try_out(family: str, folder: Path, precision: str) -> dict[str, Any]:
    begun = time.perf_counter()
    checkpoint = build(family, folder)
    built, checkpoint_bytes = time.perf_counter() - begun, checkpoint.stat().st_size
    run = RunFolder.create(answers(family, checkpoint, precision, folder))
    process = subprocess.run(
        [sys.executable, "-m", "engine", str(run.path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    events = [json.loads(line) for line in process.stdout.splitlines()]
    assert process.returncode == 0, events[-1] if events else process.stderr
    started = next(event for event in events if event["event"] == "run_started")
    steps = [event for event in events if event["event"] == "step_finished"]
    finished = events[-1]
    assert len(steps) == 2
    network = run.path / finished["network"]
    effect = effect_in_diffusers(family, folder, network)
    shutil.rmtree(folder)
    return {
        "family": family,
        "precision": precision,
        "checkpoint_gb": round(checkpoint_bytes / 1e9, 2),
        "seconds_to_build": round(built, 1),
        "trainable_parameters": started["trainable_parameters"],
        "losses": [step["loss"] for step in steps],
        "seconds_per_step": [round(step["seconds"], 1) for step in steps],
        "peak_ram_gb": round(finished["peak_ram_bytes"] / 1e9, 2),
        "file_mb": round(network_bytes(events) / 1e6, 1),
        "change_of_prediction_in_diffusers": effect,
    }


def network_bytes(events: list[dict[str, Any]]) -> int:
    return next(event["bytes"] for event in events if event["event"] == "checkpoint_saved" and event["final"])


def build(family: str, folder: Path) -> Path:
    """The family at its real size as one file, and its parts as a folder for diffusers; weights in bf16."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from original_layout import write_original
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from engine.models.load import quiet_libraries
    from engine.models.original import shipped_tokenizer
    from knowledge.families import DATA

    quiet_libraries()
    shutil.copytree(DATA / family, folder)
    pads = {"sdxl": {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}, "sd2": {"tokenizer": "!"}}
    for name, pad_token in pads.get(family, {"tokenizer": "<|endoftext|>"}).items():
        shipped_tokenizer(pad_token).save_pretrained(folder / name)
    kinds: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    if family == "sdxl":
        kinds["text_encoder_2"] = CLIPTextModelWithProjection
    torch.manual_seed(0)
    for name, kind in kinds.items():
        with torch.device("meta"):
            if name.startswith("text_encoder"):
                module = kind(CLIPTextConfig.from_pretrained(folder / name))
            else:
                module = kind.from_config(kind.load_config(folder / name))
        module = module.to(torch.bfloat16).to_empty(device="cpu")
        for parameter_name, parameter in module.named_parameters():
            if "norm" in parameter_name and parameter_name.endswith("weight"):
                torch.nn.init.ones_(parameter)
            elif parameter_name.endswith("bias"):
                torch.nn.init.zeros_(parameter)
            else:
                torch.nn.init.normal_(parameter, std=0.02)
        for buffer_name, buffer in module.named_buffers():
            if buffer_name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
        module.save_pretrained(folder / name)
        del module
        gc.collect()
    return write_original(folder, folder / f"{family}.safetensors")


def answers(family: str, checkpoint: Path, precision: str, folder: Path) -> TrainingConfig:
    document = {
        "base_model": {"path": str(checkpoint), "family": family},
        "dataset": {"folders": [{"path": str(PICTURES)}], "resolution": 256},
        "network": {"rank": 16, "alpha": 16.0, "train_text_encoder": True},
        "schedule": {"maximum_steps": 2, "epochs": 1},
        "memory": {"precision": precision, "gradient_checkpointing": True},
        "saving": {"precision": "bf16"},
        "output": {"name": "full", "folder": str(folder / "runs")},
    }
    return TrainingConfig.model_validate(document)


def effect_in_diffusers(family: str, folder: Path, network: Path) -> float:
    """The largest change that the file makes to one prediction of diffusers' own pipeline."""
    import torch
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipeline = kind.from_pretrained(folder, local_files_only=True, torch_dtype=torch.bfloat16)
    unet = pipeline.unet
    noisy = torch.randn((1, 4, 32, 32), generator=torch.Generator().manual_seed(0)).bfloat16()
    hidden = torch.randn(
        (1, 77, unet.config.cross_attention_dim), generator=torch.Generator().manual_seed(1)
    ).bfloat16()
    more: dict[str, Any] = {}
    if family == "sdxl":
        added = {"text_embeds": torch.ones(1, 1280).bfloat16(), "time_ids": torch.full((1, 6), 256.0)}
        more["added_cond_kwargs"] = added
    with torch.no_grad():
        before = unet(noisy, 500, hidden, **more).sample.float()
        pipeline.load_lora_weights(network)
        after = unet(noisy, 500, hidden, **more).sample.float()
    change = (after - before).abs().max().item()
    assert change > 0, "diffusers loaded the file and nothing changed"
    return change


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
