"""The models that one might start with."""

from __future__ import annotations

import re

import pytest

from knowledge.downloads import fitting_vae, suggestions
from knowledge.families import family_names


@pytest.mark.parametrize("each", suggestions().values(), ids=lambda each: each.name)
def test_a_suggestion_has_an_address_on_the_hub_and_a_family_that_is_trained(each):
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", each.address)
    assert each.kind in ("base", "vae")
    assert each.family in family_names()
    assert each.path == "" or each.path.endswith(".safetensors")
    assert each.meaning.endswith(".")


def test_the_vae_for_sdxl_is_safe_in_half_precision():
    vae = fitting_vae("sdxl")
    assert vae is not None
    assert "fp16" in vae.address
    assert fitting_vae("sd15").family == "sd15"
    assert fitting_vae("pocket") is None
