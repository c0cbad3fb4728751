"""The benchmark of memory forecasts: enough unlike configs, and a table that says what was measured where."""

import importlib.util
from pathlib import Path

import pytest

from engine.pocket import MODEL_FOLDER

FILE = Path(__file__).parents[1] / "benchmarks" / "memory_forecast.py"


@pytest.fixture(scope="module")
def benchmark():
    import sys

    spec = importlib.util.spec_from_file_location("memory_forecast", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["memory_forecast"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", ["pocket", "sd15", "sdxl"])
def test_a_family_is_measured_in_thirty_unlike_ways(benchmark, family):
    found = list(benchmark.configs({family: "model" if family != "pocket" else str(MODEL_FOLDER)}, "bf16"))
    assert len({label for label, _ in found}) == len(found) >= 30
    assert {config.network.algorithm for _, config in found} == {"lora", "locon", "dora", "loha", "lokr"}
    assert {config.memory.gradient_checkpointing for _, config in found} == {True, False}


def test_without_a_card_it_measures_main_memory_and_writes_the_table(benchmark, tmp_path, capsys):
    benchmark.main(["--first", "1", "--output", str(tmp_path)])
    (path,) = tmp_path.glob("memory-*.md")
    told = path.read_text()
    assert "1 configs, main memory of the process" in told
    assert "pocket algorithm=lora" in told
    assert "did not run" not in told
    assert "Worst" in told


def test_what_ran_out_of_memory_is_no_figure(benchmark):
    rows = [benchmark.Row("a", 110, 100), benchmark.Row("b", 500, 0), benchmark.Row("c", 98, 100)]
    told = benchmark.table(rows, benchmark.Hardware("RTX 3060", 12 * 2**30), "2026-01-02")
    assert "RTX 3060, 2026-01-02" in told
    assert "Worst 10.0%, median 6.0%" in told
    assert "| b | 0 | did not run | |" in told
