"""Sample prompts made of the user's own words."""

import pytest

from knowledge.config import DatasetSettings
from knowledge.facts import DatasetFacts, FolderFacts, Picture
from wizard.suggestions import sample_prompts

PICTURES = DatasetFacts((FolderFacts((Picture("a.png", 64, 64, "a big cat"),), 1),))


@pytest.mark.parametrize("goal", ["character", "style", "object", "concept"])
@pytest.mark.parametrize("trigger_word", ["", "zor"])
def test_every_proposed_prompt_names_something_to_draw(goal, trigger_word):
    prompts = sample_prompts("sd15", DatasetSettings(goal=goal, trigger_word=trigger_word), PICTURES)
    assert len(prompts) == len(set(prompts)) >= 2
    assert all(prompt.split()[0] not in ("on", "in", "at", ",") for prompt in prompts)
    assert prompts[0] == ("zor, a big cat" if trigger_word else "a big cat")
    if trigger_word:
        assert trigger_word in prompts[1]
        assert trigger_word not in prompts[-1]
