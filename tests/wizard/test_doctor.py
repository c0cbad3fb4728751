"""The doctor's lines: what was found, whether it matters, what mends it."""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner

from knowledge.config import TrainingConfig, with_values
from knowledge.facts import Hardware
from wizard import doctor as module
from wizard import probes
from wizard.doctor import Patient, doctor, examine, hub_answers, places, tokens
from wizard.hardware import GraphicsCard

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
        "onnxruntime": {"version": "1.20", "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]},
    },
    environment={},
    tokens={"Hugging Face": True, "Civitai": True},
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


def test_a_broken_bitsandbytes_matters_only_to_who_asked_for_it():
    broken = with_probe("bitsandbytes", error="libcudart.so.12: cannot open shared object file")
    assert lines(broken)["8-bit optimizer"].state == "note"

    class Asked:
        config = with_values(TrainingConfig(), {"optimizer.name": "adamw8bit"})
        plan = None

    line = lines(replace(broken, situation=Asked()))["8-bit optimizer"]
    assert line.state == "problem"
    assert "optimizer.name=adamw" in line.mend


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


def test_rented_machines_are_recognised():
    assert "RunPod" in places({"RUNPOD_POD_ID": "x"})
    assert "Google Colab" in places({"COLAB_RELEASE_TAG": "x"})
    assert lines(replace(HEALTHY, places=("RunPod",)))["rented machine"].matters.startswith("What is on its disk")


def test_the_network_is_asked_by_opening_a_connection():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert hub_answers(f"http://127.0.0.1:{port}", 2)
    assert not hub_answers(f"http://127.0.0.1:{port}", 2)


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
    monkeypatch.setattr(module, "_patient", lambda answers: patient)
    answer = CliRunner().invoke(doctor, ["--json"], standalone_mode=False)
    assert answer.return_value == code
    document = json.loads(answer.stdout)
    assert document["ready"] is (code == 0)
    assert {"name", "found", "state", "matters", "mend"} == set(document["lines"][0])
    page = CliRunner().invoke(doctor, [], standalone_mode=False)
    assert ("Nothing is in the way" in page.output) is (code == 0)
    assert sys.version.split()[0] in page.output
