from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from engine.models.load import load
from engine.models.weights import weighted_parts, weighted_tokens
from engine.pocket import MODEL_FOLDER
from knowledge.config import BaseModelSettings

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "weighted_token_ids.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(MODEL_FOLDER / "tokenizer", local_files_only=True)


@pytest.mark.parametrize(("key", "most"), [("None", 75), ("225", 225)])
@pytest.mark.parametrize("index", range(len(REFERENCE["captions"])))
def test_tokens_and_weights_are_sd_scripts(tokenizer, index, key, most):
    recorded = REFERENCE["sd1"][key][index]
    theirs_ids = [number for chunk in recorded["ids"] for number in chunk[1:-1]]
    theirs_weights = [weight for chunk in recorded["weights"] for weight in chunk[1:-1]]
    ids, weights = weighted_tokens(tokenizer, REFERENCE["captions"][index], most)
    assert ids == theirs_ids[: len(ids)]
    assert set(theirs_ids[len(ids) :]) <= {tokenizer.eos_token_id}
    assert weights == pytest.approx(theirs_weights[: len(ids)])
    assert set(theirs_weights[len(ids) :]) <= {1.0}


@pytest.mark.parametrize(
    ("caption", "parts"),
    [
        ("", []),
        ("a hat", [("a hat", 1.0)]),
        ("a (red) hat", [("a ", 1.0), ("red", 1.1), (" hat", 1.0)]),
        ("a (red:1.5) hat", [("a ", 1.0), ("red", 1.5), (" hat", 1.0)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("((a:2) b)", [("a", 2.2), (" b", 1.1)]),
        ("a (b", [("a ", 1.0), ("b", 1.1)]),
        ("at 12:30) sharp", [("at 12:30) sharp", 1.0)]),
        (r"\(a\)", [("(a)", 1.0)]),
    ],
)
def test_brackets_say_how_much_words_count(caption, parts):
    found = weighted_parts(caption)
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("maximum_tokens", [75, 150])
def test_weights_multiply_what_the_encoders_say_of_their_words(request, family, maximum_tokens):
    folder = request.getfixturevalue(f"tiny_{family}")
    model = load(BaseModelSettings(path=str(folder), family=family, maximum_tokens=maximum_tokens), torch.float32)
    plain = model.encode_prompt(["a red hat"]).hidden_states
    literal = model.encode_prompt(["a (red:1.5) hat"]).hidden_states
    model.weighted_captions = True
    weighted = model.encode_prompt(["a (red:1.5) hat"])
    expected = plain.clone()
    expected[:, 2] *= 1.5  # begin, a, red
    assert torch.allclose(weighted.hidden_states, expected, atol=1e-6)
    assert torch.allclose(model.encode_prompt(["a red hat"]).hidden_states, plain)
    assert not torch.allclose(literal, weighted.hidden_states, atol=1e-3)
