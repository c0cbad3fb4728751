"""One training step at full size: our engine beside diffusers' own components, on the same work. Run by hand:

    python tests/benchmarks/step.py [sd15|sdxl] [--resolution 256] [--batch-size 1] [--precision fp32] [--steps N]
                                    [--selective] [--folder DIR]

The base model has random weights at its real size, built from the configurations that ship with the engine. Both sides
train a LoRA on the same layers, from latents and text outputs that are cached, with AdamW. The other side is diffusers'
UNet with peft's LoRA, as diffusers' LoRA script does it. Each side is a process of its own, on the GPU where there is
one. Printed are, for the last steps, seconds and CPU-seconds a step, the share of the machine's measured matrix rate,
and the peak of the process' memory, on a GPU that of what torch's allocator took from the card. How the sides relate
is told by seconds on a GPU, and on a CPU by CPU-seconds, which count where other programs share the processor. On a
CPU SD 1.5 in fp32 needs 8 GB of memory, SDXL 16 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
sys.path[:0] = [str(ROOT), str(TESTS)]
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "lycoris-lora")
RANK = 16
FIRST, COUNTED = {"cpu": 2, "cuda": 5}, {"cpu": 4, "cuda": 25}
"""Steps that are not counted, since the libraries choose their kernels in them, and those that are."""
ASKED = {"cpu": "cpu_seconds_per_step", "cuda": "seconds_per_step"}
"""The time by which the sides are compared."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="?", choices=["sd15", "sdxl"], default="sd15")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, help="also those that are not counted; 6 on a CPU, 30 on a GPU")
    parser.add_argument("--selective", action="store_true", help="with memory.selective_checkpointing on our side")
    parser.add_argument("--folder", type=Path, help="where the model is built, and found again; else a temporary one")
    parser.add_argument("--other-side", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = kind_of_device()
    options.steps = options.steps or FIRST[options.device] + COUNTED[options.device]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)) / options.family
        if options.other_side:
            train_with_diffusers(options, folder)
            return
        if not folder.exists():
            from full_size import build

            build(options.family, folder).unlink()  # the folder is enough
        say(json.dumps(compare(options, folder, Path(temporary)), indent=2))


def compare(options: argparse.Namespace, folder: Path, temporary: Path) -> dict[str, Any]:
    """Both sides' figures and how they relate."""
    asked, first = ASKED[options.device], FIRST[options.device]
    flops, rate = step_flops(options), MATRIX_RATES[options.device](options.precision)
    ours = measured(our_command(options, folder, temporary), "step_finished", options.steps, first)
    again = [sys.executable, __file__, *sys.argv[1:], "--other-side"]
    theirs = measured(
        again if options.folder else [*again, "--folder", str(folder.parent)], "step", options.steps, first
    )
    for side in (ours, theirs):
        side["share_of_matrix_rate"] = round(flops / side[asked] / rate, 3)
    return {
        "device": device_name(),
        "machine": platform.processor() or platform.machine(),
        "cpu": cpu_name(),
        "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        "versions": {name: version(name) for name in LIBRARIES},
        "work": f"{options.family}, {options.resolution} px, batch {options.batch_size}, rank {RANK}, "
        f"{options.precision}, UNet only" + ", selective checkpointing on our side" * options.selective,
        "tflop_per_step": round(flops / 1e12, 3),
        f"matrix_gflop_per_{asked.split('s_')[0]}": round(rate / 1e9, 1),
        "lora-wizard": ours,
        "diffusers and peft": theirs,
        "ratio": {name: round(ours[name] / theirs[name], 2) for name in (asked, "peak_memory_gb")},
    }


def measured(command: list[str], event: str, steps: int, first: int) -> dict[str, Any]:
    """Wall and CPU seconds between the lines that a child writes after its steps, and the most memory it held."""
    import psutil

    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    child, times, peak = psutil.Process(process.pid), [], 0.0
    for line in process.stdout:
        document = json.loads(line)
        if document["event"] in (event, "run_started", "phase_started"):
            used = child.cpu_times()
            times.append((document["event"], time.perf_counter(), used.user + used.system))
        peak = max(peak, document.get("peak_vram_bytes") or document.get("peak_ram_bytes", 0))
        assert document["event"] != "failed", document
    assert process.wait() == 0, command
    spans = [
        (now - before, cpu - cpu_before)
        for (_, before, cpu_before), (name, now, cpu) in pairwise(times)
        if name == event
    ]
    assert len(spans) == steps, spans
    walls, cpus = zip(*spans[first:], strict=True)
    return {
        "seconds_per_step": round(statistics.median(walls), 4),
        "cpu_seconds_per_step": round(statistics.median(cpus), 2),
        "peak_memory_gb": round(peak / 1e9, 2),
    }


def our_command(options: argparse.Namespace, folder: Path, temporary: Path) -> list[str]:
    from engine.run_folder import RunFolder
    from knowledge.config import TrainingConfig

    document = {
        "base_model": {"path": str(folder), "family": options.family},
        "dataset": {
            "folders": [{"path": str(one_picture(temporary, options)), "repeats": options.steps * options.batch_size}],
            "resolution": options.resolution,
        },
        "network": {"rank": RANK, "alpha": float(RANK)},
        "schedule": {"maximum_steps": options.steps, "epochs": 1, "batch_size": options.batch_size},
        "memory": {
            "precision": options.precision,
            "cache_latents": True,
            "cache_text_encoder_outputs": True,
            "selective_checkpointing": options.selective,
        },
        "output": {"name": "benchmark", "folder": str(temporary / "runs")},
    }
    run = RunFolder.create(TrainingConfig.model_validate(document))
    return [sys.executable, "-m", "engine", str(run.path)]


def one_picture(temporary: Path, options: argparse.Namespace) -> Path:
    """A folder of one square picture of noise: every batch of it is full, and of one shape."""
    from PIL import Image

    folder = temporary / "pictures"
    folder.mkdir()
    Image.effect_noise((options.resolution, options.resolution), 80).convert("RGB").save(folder / "noise.png")
    (folder / "noise.txt").write_text("sks toy", encoding="utf-8")
    return folder


def train_with_diffusers(options: argparse.Namespace, folder: Path) -> None:
    """The same steps with diffusers' UNet, peft's LoRA and torch's AdamW, written from their documentation."""
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from peft import LoraConfig

    from engine.memory import peak_ram_bytes, peak_vram_bytes

    device, half = torch.device(options.device), options.precision == "bf16"
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.bfloat16 if half else torch.float32)
    unet.requires_grad_(False)
    unet.to(device)
    layers = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=layers))
    trained = [weights for weights in unet.parameters() if weights.requires_grad]
    for weights in trained:
        weights.data = weights.data.float()
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    noise_scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    say(json.dumps({"event": "run_started"}))
    for _ in range(options.steps):
        latents, hidden_states, more = inputs(options, unet.config.cross_attention_dim, options.device)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (len(latents),), device=device)
        noisy = noise_scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(options.device, torch.bfloat16, enabled=half):
            prediction = unet(noisy, timesteps, hidden_states, return_dict=False, **more)[0]
        loss = torch.nn.functional.mse_loss(prediction.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        peaks = {"peak_ram_bytes": peak_ram_bytes(), "peak_vram_bytes": peak_vram_bytes(device)}
        # The script reads the loss in every step; here also the rest of the step is done before its time is taken.
        if options.device == "cuda":
            torch.cuda.synchronize()
        say(json.dumps({"event": "step", "loss": loss.item(), **peaks}))


def inputs(options: argparse.Namespace, width: int, device: str = "cpu") -> tuple[Any, Any, dict[str, Any]]:
    """Latents, text and conditions of a batch of the work's size."""
    import torch

    count, side = options.batch_size, options.resolution // 8
    hidden_states = torch.randn(count, 77, width, device=device)
    more: dict[str, Any] = {}
    if options.family == "sdxl":
        pooled, sizes = torch.randn(count, 1280, device=device), torch.zeros(count, 6, device=device)
        more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
    return torch.randn(count, 4, side, side, device=device), hidden_states, more


def step_flops(options: argparse.Namespace) -> float:
    """Operations of a step's matrix products and convolutions, as the calculator has them from traces."""
    from calculator.step_cost import Course, Sizes, work

    course = Course(options.family, "lora", False, options.precision != "fp32", False)
    return work(course, Sizes(options.batch_size, (options.resolution // 8) ** 2, RANK, 0)).flops


def rate_on_cpu(precision: str) -> float:
    """Operations a CPU-second in products of large square matrices: the best of several."""
    import torch

    one, other = square_matrices(precision, 2048, "cpu")

    def rates() -> Iterator[float]:
        for _ in range(6):
            begun = time.process_time()
            torch.mm(one, other)
            yield 2 * 2048**3 / (time.process_time() - begun)

    return max(rates())


def rate_on_cuda(precision: str) -> float:
    """Operations a second in products of large square matrices, by the card's own clock: the best of several."""
    import torch

    one, other = square_matrices(precision, 8192, "cuda")
    result = torch.mm(one, other)

    def rates() -> Iterator[float]:
        for _ in range(6):
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            for _ in range(10):
                torch.mm(one, other, out=result)
            ended.record()
            torch.cuda.synchronize()
            yield 10 * 2 * 8192**3 / (begun.elapsed_time(ended) / 1000)

    return max(rates())


MATRIX_RATES = {"cpu": rate_on_cpu, "cuda": rate_on_cuda}


def square_matrices(precision: str, side: int, device: str) -> list[Any]:
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return [torch.randn(side, side, device=device).to(dtype) for _ in range(2)]


def kind_of_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
