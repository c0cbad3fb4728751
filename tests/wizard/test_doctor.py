"""The doctor's lines: what was found, whether it matters, what mends it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from knowledge.config import TrainingConfig, with_values
from knowledge.facts import Hardware
from wizard import doctor as module
from wizard import probes
from wizard.checks import examine
from wizard.doctor import doctor
from wizard.hardware import GraphicsCard
from wizard.library_checks import has_kernels
from wizard.mending import installs
from wizard.patient import Patient, connects, places, sites, tokens

ROOT = Path(__file__).parents[2]
CARD = GraphicsCard("NVIDIA GeForce RTX 3060", 12 * 2**30, 11 * 2**30, (8, 6), "560.94")
TORCH = {
    "version": "2.9.1",
    "cuda": "12.8",
    "rocm": None,
    "device": "cuda",
    "architectures": ["sm_86"],
    "formats": {"float32": "", "bfloat16": "", "float16": ""},
}
HEALTHY = Patient(
    hardware=Hardware(CARD.name, CARD.vram_bytes, 32 * 2**30, 200 * 10**9, (8, 6), 12),
    cards=[CARD],
    probes={
        "torch": TORCH,
        "libraries": {"imported": []},
        "bitsandbytes": {"version": "0.48", "device": "cuda", "moved": True},
        "onnxruntime": {
            "version": "1.20",
            "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"],
            "used": ["CUDAExecutionProvider", "CPUExecutionProvider"],
        },
    },
    environment={},
    tokens={"Hugging Face": True, "Civitai": True},
    sites={"Hugging Face": True, "Civitai": True},
    answers="my-lora.toml",
)


def lines(patient):
    return {line.name: line for line in examine(patient)}


def with_probe(name, **answer):
    return replace(HEALTHY, probes={**HEALTHY.probes, name: answer})


def test_a_healthy_computer_has_nothing_in_the_way():
    found = lines(HEALTHY)
    assert [line.name for line in found.values() if line.state not in ("good",)] == []
    assert found["graphics card"].found.startswith("NVIDIA GeForce RTX 3060, 12.0 GB VRAM (11.0 GB free)")
    assert found["precision"].found == "bf16 and fp16 work"


def test_a_pytorch_that_cannot_use_the_card_is_mended_with_the_wheels_of_its_driver():
    cpu_only = with_probe("torch", **{**TORCH, "cuda": None, "device": "cpu"})
    line = lines(cpu_only)["PyTorch"]
    assert line.state == "problem"
    assert line.mend.endswith("/whl/cu128")
    newer = replace(cpu_only, cards=[replace(CARD, driver="580.65.06")])
    assert lines(newer)["PyTorch"].mend.endswith("/whl/cu130")
    older = replace(cpu_only, cards=[replace(CARD, capability=(6, 1))])
    assert lines(older)["PyTorch"].mend.endswith("/whl/cu126")


def test_a_card_without_code_in_this_pytorch_is_found_by_multiplying():
    broken = {**TORCH["formats"], "float32": "CUDA error: no kernel image is available for execution on the device"}
    line = lines(with_probe("torch", **{**TORCH, "formats": broken}))["PyTorch"]
    assert line.state == "problem"
    assert "no kernel image" in line.found
    assert "pip install" in line.mend


def test_the_test_multiplication_decides_about_bf16():
    without = {**TORCH["formats"], "bfloat16": "not implemented"}
    line = lines(with_probe("torch", **{**TORCH, "formats": without}))["precision"]
    assert line.found == "fp16 works"
    assert "fp16" in line.matters


def test_a_missing_pytorch_is_in_the_way():
    assert lines(with_probe("torch", error="No module named 'torch'"))["PyTorch"].state == "problem"


def test_no_card_is_told_without_alarm():
    found = lines(replace(with_probe("torch", **{**TORCH, "cuda": None, "device": "cpu"}), cards=[]))
    assert found["graphics card"].state == "note"
    assert found["PyTorch"].state == "good"


def test_a_card_that_others_use_is_a_warning():
    found = lines(replace(HEALTHY, cards=[replace(CARD, vram_free_bytes=2 * 2**30)]))
    assert found["graphics card"].state == "warning"
    assert "10.0 GB" in found["graphics card"].matters


def planned(vram=8 * 2**30, disk=10**9, **settings):
    """A situation with these settings, and a plan that needs so much."""
    config = with_values(TrainingConfig(), {name.replace("__", "."): value for name, value in settings.items()})
    plan = SimpleNamespace(
        vram=SimpleNamespace(likely_bytes=vram), disk_bytes=disk, duration=SimpleNamespace(likely_seconds=7200)
    )
    return SimpleNamespace(config=config, plan=plan)


@pytest.mark.parametrize("optimizer", ["adamw8bit", "paged_adamw8bit", "lion8bit"])
def test_a_broken_bitsandbytes_matters_only_to_who_asked_for_it(optimizer):
    broken = with_probe("bitsandbytes", error="libcudart.so.12: cannot open shared object file")
    assert lines(broken)["8 bits"].state == "note"
    assert "install --upgrade bitsandbytes" in lines(broken)["8 bits"].mend
    line = lines(replace(broken, situation=planned(optimizer__name=optimizer)))["8 bits"]
    assert line.state == "problem"
    assert line.mend.startswith("lora-wizard train my-lora.toml --set optimizer.name=")
    assert line.mend.endswith(("=adamw", "=lion"))
    assert "8bit" not in line.mend


@pytest.mark.parametrize("form", ["8bit", "nf4"])
def test_a_broken_bitsandbytes_matters_to_who_holds_the_base_model_in_its_numbers(form):
    broken = replace(with_probe("bitsandbytes", error="gone"), situation=planned(memory__base_weights=form))
    line = lines(broken)["8 bits"]
    assert (line.state, line.matters) == ("problem", f"These answers ask for memory.base_weights = {form}.")
    assert line.mend == "lora-wizard train my-lora.toml --set memory.base_weights=fp8"
    assert lines(replace(broken, situation=planned(memory__base_weights="fp8")))["8 bits"].state == "note"


def test_a_tracker_that_cannot_be_written_to_is_in_the_way_of_who_asked_for_it(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    asked = [replace(HEALTHY, situation=planned(logging__tracker=name)) for name in ("tensorboard", "wandb")]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for patient, name in zip(asked, ("tensorboard", "wandb"), strict=True):
        line = lines(patient)["tracker"]
        assert (line.state, line.found) == ("problem", f"{name} is not installed")
        assert installs([line]) == [f"{Path(sys.executable).name} -m pip install {name}"]
    assert "tracker" not in lines(HEALTHY)
    assert "tracker" not in lines(replace(HEALTHY, situation=planned()))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert lines(asked[0])["tracker"].state == "good"
    assert lines(asked[1])["tracker"].mend.startswith("wandb login")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert lines(asked[1])["tracker"].state == "good"


def test_a_precision_that_does_not_work_here_is_in_the_way_of_who_asked_for_it():
    without = with_probe("torch", **{**TORCH, "formats": {**TORCH["formats"], "bfloat16": "not implemented"}})
    line = lines(replace(without, situation=planned(memory__precision="bf16")))["precision"]
    assert (line.state, line.mend) == ("problem", "lora-wizard train my-lora.toml --set memory.precision=fp16")
    assert lines(replace(without, situation=planned(memory__precision="fp16")))["precision"].state == "good"


def test_bf16_that_a_card_only_imitates_is_told():
    older = replace(HEALTHY, cards=[replace(CARD, capability=(7, 5))])
    line = lines(older)["precision"]
    assert (line.state, "imitates bf16" in line.matters) == ("note", True)


@pytest.mark.parametrize(
    ("capability", "architectures", "works"),
    [
        ((8, 6), ["sm_80", "sm_90"], True),
        ((8, 0), ["sm_86"], False),
        ((6, 1), ["sm_75", "sm_80"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((12, 0), ["sm_80", "sm_90a"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_100"], True),
        ((8, 6), [], True),
    ],
)
def test_kernels_serve_their_generation_and_intermediate_code_all_later_ones(capability, architectures, works):
    assert has_kernels(replace(CARD, capability=capability), architectures) is works


def test_a_second_card_without_kernels_is_named():
    older = GraphicsCard("NVIDIA GeForce GTX 1080", 8 * 2**30, 8 * 2**30, (6, 1), "560.94")
    line = lines(replace(HEALTHY, cards=[CARD, older]))["PyTorch"]
    assert (line.state, "GTX 1080" in line.matters) == ("warning", True)
    assert "compute capability 8.6" in lines(HEALTHY)["PyTorch"].found


def test_a_tagger_that_cannot_use_the_card_is_found_by_multiplying():
    slow = with_probe("onnxruntime", version="1.20", providers=["CUDAExecutionProvider"], used=["CPUExecutionProvider"])
    line = lines(slow)["tagger"]
    assert (line.state, line.found) == ("note", "onnxruntime 1.20 computes on CPU")
    assert "onnxruntime-gpu" in line.mend
    assert lines(replace(slow, cards=[]))["tagger"].state == "good"


def test_the_probe_of_onnxruntime_multiplies_on_this_computer():
    answer = probes.onnxruntime()
    assert "CPUExecutionProvider" in answer["used"]


def test_a_card_whose_driver_is_silent_is_told_with_what_starts_it():
    none = replace(with_probe("torch", **{**TORCH, "cuda": None, "device": "cpu"}), cards=[])
    silent = lines(replace(none, silent_card=True))["graphics card"]
    assert (silent.state, "does not answer" in silent.found) == ("warning", True)
    assert silent.mend
    docker = lines(replace(none, silent_card=True, places=("a Docker container",)))["graphics card"]
    assert "docker run --gpus all" in docker.mend
    colab = lines(replace(none, places=("Google Colab",)))["graphics card"]
    assert "Change runtime type" in colab.mend
    assert "2 h" in lines(replace(none, situation=planned()))["graphics card"].matters


def test_a_base_model_that_is_missing_is_in_the_way(tmp_path):
    gone = planned(base_model__path=str(tmp_path / "gone.safetensors"), base_model__family="sdxl")
    line = lines(replace(HEALTHY, situation=gone))["base model"]
    assert (line.state, line.mend) == ("problem", "lora-wizard download sdxl")
    pocket = planned(base_model__path="pocket", base_model__family="sd15")
    wrong = lines(replace(HEALTHY, situation=pocket))["base model"]
    assert wrong.mend == "lora-wizard train my-lora.toml --set base_model.family=pocket"
    assert lines(replace(HEALTHY, situation=planned(base_model__path="pocket")))["base model"].state == "good"


def test_little_memory_counts_the_page_file():
    small = replace(HEALTHY, hardware=replace(HEALTHY.hardware, ram_bytes=6 * 2**30))
    assert lines(small)["memory"].state == "warning"
    assert lines(small)["memory"].mend
    assert lines(replace(small, swap_bytes=8 * 2**30))["memory"].state == "good"
    sdxl = replace(small, swap_bytes=8 * 2**30, situation=planned(base_model__family="sdxl"))
    assert (lines(sdxl)["memory"].state, "16 GB" in lines(sdxl)["memory"].matters) == ("warning", True)
    assert ".wslconfig" in lines(replace(small, places=("WSL",)))["memory"].mend


def test_a_training_that_fits_only_an_empty_card_is_a_warning():
    busy = replace(HEALTHY, cards=[replace(CARD, vram_free_bytes=4 * 2**30)], situation=planned(vram=8 * 2**30))
    assert lines(busy)["fits"].state == "warning"
    assert lines(replace(HEALTHY, situation=planned(vram=8 * 2**30)))["fits"].state == "good"


def test_every_line_that_is_not_good_says_how_it_is_mended():
    ill = replace(
        with_probe("torch", error="gone"),
        cards=[],
        tokens={"Hugging Face": False, "Civitai": False},
        sites={"Hugging Face": False, "Civitai": False},
        hardware=Hardware("CPU", 0, 2**30, 10**9, None, 2),
        probes={name: {"error": "gone"} for name in HEALTHY.probes},
        places=("RunPod",),
    )
    for line in examine(ill):
        assert line.state == "good" or (line.matters and line.mend), line


def test_a_training_that_does_not_fit_is_in_the_way():
    class Vram:
        likely_bytes = 20 * 2**30

    class Plan:
        vram = Vram()
        disk_bytes = 300 * 10**9

    class Large:
        config = TrainingConfig()
        plan = Plan()

    found = lines(replace(HEALTHY, situation=Large()))
    assert found["fits"].state == "problem"
    assert found["disk"].state == "problem"
    assert "200 GB free" in found["disk"].found


def test_tokens_are_told_and_never_shown(tmp_path):
    environment = {"HF_HOME": str(tmp_path), "CIVITAI_TOKEN": "very-secret"}
    assert tokens(environment) == {"Hugging Face": False, "Civitai": True}
    (tmp_path / "token").write_text("hf_secret")
    found = tokens(environment)
    assert found == {"Hugging Face": True, "Civitai": True}
    assert "secret" not in repr(lines(replace(HEALTHY, tokens=found)))


@pytest.mark.parametrize(
    ("variable", "place"),
    [
        ("RUNPOD_POD_ID", "RunPod"),
        ("VAST_CONTAINERLABEL", "Vast.ai"),
        ("VAST_TCP_PORT_22", "Vast.ai"),
        ("COLAB_RELEASE_TAG", "Google Colab"),
        ("COLAB_GPU", "Google Colab"),
        ("KAGGLE_KERNEL_RUN_TYPE", "Kaggle"),
        ("WSL_DISTRO_NAME", "WSL"),
    ],
)
def test_rented_machines_and_wsl_are_recognised_by_what_they_set(monkeypatch, tmp_path, variable, place):
    monkeypatch.setattr("wizard.patient.ROOT", tmp_path)
    monkeypatch.setattr("platform.release", lambda: "6.1.0")
    assert places({}) == []
    assert places({variable: "x"}) == [place]


def test_wsl_is_recognised_by_its_kernel_and_containers_by_their_marks(monkeypatch, tmp_path):
    monkeypatch.setattr("wizard.patient.ROOT", tmp_path)
    monkeypatch.setattr("platform.release", lambda: "5.15.153.1-microsoft-standard-WSL2")
    assert places({}) == ["WSL"]
    monkeypatch.setattr("platform.release", lambda: "6.1.0")
    (tmp_path / ".dockerenv").touch()
    assert places({}) == ["a Docker container"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".containerenv").touch()
    (tmp_path / ".dockerenv").unlink()
    assert places({}) == ["a Podman container"]


def test_on_a_rented_machine_it_says_that_its_disk_may_go():
    assert lines(replace(HEALTHY, places=("RunPod",)))["rented machine"].matters.startswith("What is on its disk")


def test_the_network_is_asked_by_opening_a_connection(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        here = f"http://127.0.0.1:{port}"
        assert connects(here, 2)
        with socket.create_server(("127.0.0.1", 0)) as other:
            gone = f"http://127.0.0.1:{other.getsockname()[1]}"
        assert sites({"HF_ENDPOINT": here, "CIVITAI_ENDPOINT": gone}) == {"Hugging Face": True, "Civitai": False}
        monkeypatch.setenv("http_proxy", here)
        monkeypatch.setenv("no_proxy", "")
        assert connects("http://somewhere.invalid", 2)  # through the proxy, which would find it
    assert not connects(here, 2)


def test_what_a_plan_needs_of_the_network_is_nothing():
    silent = replace(HEALTHY, sites={"Hugging Face": False, "Civitai": True}, situation=planned())
    line = lines(silent)["network"]
    assert line.found == "Hugging Face does not answer, Civitai answers"
    assert line.matters == "This training needs none."
    assert "HF_ENDPOINT" in line.mend


def test_without_torch_the_doctor_still_speaks(tmp_path):
    """In a process of its own, in which neither torch nor what stands on it can be imported."""
    for name in ("torch", "diffusers", "bitsandbytes", "onnxruntime"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('No module named {name}')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    answer = subprocess.run(
        [sys.executable, "-m", "wizard.cli", "doctor", "--json"],
        env=os.environ
        | {"PYTHONPATH": path, "HF_ENDPOINT": "http://127.0.0.1:9", "CIVITAI_ENDPOINT": "http://127.0.0.1:9"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1, answer.stderr
    found = {line["name"]: line for line in json.loads(answer.stdout)["lines"]}
    assert found["PyTorch"]["found"] == "No module named torch"
    assert "pip install" in found["PyTorch"]["mend"]
    assert found["tagger"]["state"] == "note"


def test_a_probe_that_crashes_is_an_answer(monkeypatch):
    assert "KeyError" in probes.ask("no such probe")["error"]
    monkeypatch.setattr(probes, "SECONDS", 0.01)
    assert "did not answer" in probes.ask("torch")["error"]


def test_the_probe_of_torch_multiplies_on_this_computer():
    answer = probes.torch()
    assert answer["formats"]["float32"] == ""
    assert answer["device"] in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("patient", "code"), [(HEALTHY, 0), (with_probe("torch", error="gone"), 1)], ids=["well", "ill"]
)
def test_the_exit_code_and_the_json_tell_the_same(monkeypatch, patient, code):
    monkeypatch.setattr(module, "patient_for", lambda answers: patient)
    answer = CliRunner().invoke(doctor, ["--json"], standalone_mode=False)
    assert answer.return_value == code
    document = json.loads(answer.stdout)
    assert document["ready"] is (code == 0)
    assert {"name", "found", "state", "matters", "mend"} == set(document["lines"][0])
    page = CliRunner().invoke(doctor, [], standalone_mode=False)
    assert ("Nothing is in the way" in page.output) is (code == 0)
    assert sys.version.split()[0] in page.output
