"""A new optimizer is one row of what it is and one entry of what we believe of it: all else follows from these."""

from collections.abc import Iterator

import pytest
from pydantic import ValidationError
from safetensors import safe_open
from short_runs import Configure, run_to_end, same, stopped_at, weights

from calculator.memory import optimizer_bytes
from knowledge import library, parameters
from knowledge.architectures import architecture
from knowledge.config import TrainingConfig, choices, fields, with_values
from knowledge.optimizers import OPTIMIZERS, Optimizer

ROW = {"kind": "torch.optim:Adamax", "state": "8 * weights + 4", "arguments": {"betas": [0.9, 0.999], "eps": 1e-8}}
ENTRY = {
    "title": "Adamax",
    "meaning": "Adam that divides by the largest gradient it remembers.",
    "choose": "You want to compare.",
    "avoid": "You have no reason to.",
    "evidence": "paper",
}


@pytest.fixture
def adamax(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An optimizer more, with a row and an entry as its two files would give them."""
    monkeypatch.setitem(OPTIMIZERS, "adamax", Optimizer(**ROW))  # type: ignore[arg-type]
    entries = library.document("parameters/optimizer.toml")["name"]["choices"]
    monkeypatch.setitem(entries, "adamax", ENTRY)
    parameters._parameter.cache_clear()
    yield
    parameters._parameter.cache_clear()


def test_a_row_and_an_entry_make_an_optimizer_offered_explained_planned_trained_and_resumed(
    configure: Configure, adamax: None
):
    assert "adamax" in choices(fields()["optimizer.name"])
    assert parameters.parameters()["optimizer.name"].choices["adamax"].title == "Adamax"
    with pytest.raises(ValidationError, match=r"which adamax does not take\. Did you mean .betas"):
        with_values(TrainingConfig(), {"optimizer.name": "adamax", "optimizer.arguments": {"beta": 1}})

    # It keeps what AdamW keeps.
    model = {"base_model.family": "sd15", "base_model.path": "model"}
    adamw, adamax_ = (with_values(TrainingConfig(), {**model, "optimizer.name": name}) for name in ("adamw", "adamax"))
    assert optimizer_bytes(architecture("sd15"), adamax_) == optimizer_bytes(architecture("sd15"), adamw) > 0

    config = configure(optimizer={"name": "adamax"}, schedule={"epochs": 1})
    run, _ = run_to_end(config)
    assert same(weights(stopped_at(config, [1])), weights(run))
    with safe_open(run.checkpoints / "toy.safetensors", "pt") as file:
        assert file.metadata()["ss_optimizer"].startswith("torch.optim.Adamax(")
