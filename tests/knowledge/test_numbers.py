"""No number stands twice: what is recommended has a name, and prose, rules and guides take it from there."""

import ast
import re

import pytest

from knowledge import config
from knowledge import parameters as module
from knowledge.expressions import SPELLED, fill, names_in
from knowledge.parameters import lookup_for, parameters
from knowledge.rules import rules

NAMES = list(config.fields())
PROSE = ("meaning", "explanation", "too_low", "too_high", "choose", "avoid", "works_in", "here")


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize("name", NAMES)
def test_a_recommended_number_has_a_name(name):
    """A bare one could not be told in prose without being written a second time."""
    bare = []
    for row in module._table(name).get("recommendations", ()):
        bare += [row["value"]] if is_number(row.get("value")) else []
        for expression in (row.get("formula", "0"), row.get("when", "0")):
            bare += [
                node.value
                for node in ast.walk(ast.parse(expression, mode="eval"))
                if isinstance(node, ast.Constant) and is_number(node.value) and node.value not in (0, 1)
            ]
    assert not bare, f"{name}: give {bare} names in its numbers"


# -- texts --------------------------------------------------------------------------------------------------------

NO_NUMBERS = re.compile(
    r"\{[^}]*\}|SD 1\.5|SD [123]\b|\bT5\b|\bWD14\b|AUTOMATIC1111|DPM\+\+ 2M|LyCORIS \d\.\d|\b[Ll][12]\b|\b[bf]p\d+"
    r"|\bbf\d+|adamw8bit|lion8bit|RTX [0-9]0|GTX 16|[Ee]ight[- ]bit|[Ee]ight bits|[Ss]ixteen bits|[Tt]hirty-two bits"
    r"|[Hh]alf precision|[Tt]wo (thin|matrices|text|running)|of the two|first two|three-by-three|two the one before"
    r"|[Ff]our times the batch"
)
"""Placeholders, names that hold digits, and words that count the parts of a thing or state a law."""

CLAIMS_A_NORM = r"\b(zero|one) is (the |a )?(normal|usual|fine|safe|best|right)"
"""Zero and one have meanings of their own in prose ("at one, guidance is off"); here they are what to choose."""


def texts(table):
    yield from ((key, table[key]) for key in PROSE if key in table)
    for row in table.get("recommendations", ()):
        yield from ((f"recommendation, {key}", row[key]) for key in ("because", "case", "words") if key in row)
    yield from ((f"myth “{myth['claim'][:30]}…”", myth["truth"]) for myth in table.get("myths", ()))
    yield from ((f"together with {other}", text) for other, text in table.get("interactions", {}).items())
    for value, choice in table.get("choices", {}).items():
        yield from ((f"{value}, {where}", text) for where, text in texts(choice))


def told_of(name):
    """Every text about a setting: its entry, what others say of it, and the rules that speak of it."""
    yield from texts(module._table(name))
    for other in NAMES:
        text = module._table(other).get("interactions", {}).get(name)
        if text:
            yield f"{other}, together with {name}", text
    for rule in rules():
        if name in {*names_in(rule.when), *rule.parameters, *rule.fix}:
            yield f"rule {rule.id}", rule.message


def values_of(name):
    """The numbers that are recommended for a setting or bound it."""
    return {value for value in module._numbers(name).values() if is_number(value)}


def copies(value):
    """How prose would write a number out."""
    if value in (0, 1):
        return CLAIMS_A_NORM
    written = [re.escape(f"{value:g}"), *([SPELLED[value]] if value in SPELLED else [])]
    return "|".join(rf"(?<![\w.-]){word}(?![\w-]|\.\d)" for word in written)


@pytest.mark.parametrize("name", NAMES)
def test_no_text_about_a_setting_writes_out_one_of_its_numbers(name):
    found = []
    for where, text in told_of(name):
        bare = NO_NUMBERS.sub("", text)
        for value in values_of(name):
            found += [f"{value:g} in {where}: {bare}" for _ in re.findall(copies(value), bare, re.IGNORECASE)]
    assert not found, "take it from a placeholder, as in {usual} or {usual:word}"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.id)
def test_a_rule_takes_its_numbers_from_placeholders(rule):
    assert not re.search(r"\d", NO_NUMBERS.sub("", rule.message))


@pytest.mark.parametrize(
    ("name", "number", "value", "changed"),
    [
        ("optimizer.text_encoder_learning_rate", "sdxl_share", 0.2, "a fifth of the UNet's"),
        ("saving.state_every_epochs", "wanted", 5, "about five times in the run"),
        ("network.conv_rank", "share", 0.25, "a quarter of the rank"),
    ],
)
def test_a_changed_number_changes_the_words_that_spell_it(name, number, value, changed):
    table = module._table(name)
    lookup = lookup_for(name, own=module._numbers(name) | {number: value})
    assert any(changed in fill(row["words"], lookup) for row in table["recommendations"] if "words" in row)


# -- numbers that the calculator knows ----------------------------------------------------------------------------


def test_what_checkpointing_is_said_to_cost_and_save_is_what_the_calculator_finds():
    from wizard.costs import costs

    plain, checkpointed = costs(parameters()["memory.gradient_checkpointing"])
    numbers = module._numbers("memory.gradient_checkpointing")
    assert checkpointed.vram_bytes < numbers["memory_share"] * plain.vram_bytes
    assert checkpointed.seconds / plain.seconds - 1 == pytest.approx(numbers["more_time"], abs=0.1)


def test_what_selective_checkpointing_is_said_to_save_is_what_the_calculator_finds():
    from calculator.memory import estimate_memory
    from knowledge.architectures import architecture
    from knowledge.config import TrainingConfig, with_values
    from knowledge.facts import Hardware

    numbers = module._numbers("memory.selective_checkpointing")

    def likely(family, side, batch, selective):
        values = {"base_model.family": family, "base_model.path": "model", "memory.precision": "bf16"}
        values |= {"schedule.batch_size": batch, "dataset.resolution": side, "network.rank": 16}
        values |= {"memory.cache_text_encoder_outputs": True, "network.train_text_encoder": False}
        config = with_values(TrainingConfig(), values | {"memory.selective_checkpointing": selective})
        card = Hardware("a card", 24 * 1024**3, capability=(8, 6))
        return estimate_memory(config, architecture(family), {(side, side): batch}, card).likely_bytes

    for words, selective in (("plain", False), ("selective", True)):
        sdxl = likely("sdxl", numbers["sdxl_side"], 1, selective)
        sd15 = likely("sd15", numbers["sd15_side"], numbers["sd15_batch"], selective)
        assert numbers[f"sdxl_{words}"] == pytest.approx(sdxl, rel=0.01)
        assert numbers[f"sd15_{words}"] == pytest.approx(sd15, rel=0.01)


def test_attention_alone_has_as_many_weights_as_is_said():
    from calculator.network_size import trainable_parameters
    from knowledge.architectures import architecture
    from knowledge.config import NetworkSettings

    numbers = module._numbers("network.attention_only")
    for name, alone in (("attention", True), ("both", False)):
        network = NetworkSettings(rank=numbers["rank"], attention_only=alone)
        assert trainable_parameters(architecture("sdxl"), network) == numbers[name]


def test_a_large_rank_takes_as_much_more_memory_as_the_guide_says():
    from wizard.costs import costs

    small, *_, large = costs(parameters()["network.rank"])
    numbers = module._numbers("network.rank")
    assert (small.value, large.value) == (str(numbers["small"]), str(numbers["large"]))
    assert large.vram_bytes - small.vram_bytes == pytest.approx(numbers["sdxl_more"], rel=0.05)


def test_a_kept_picture_is_as_large_as_the_calculator_says():
    from calculator.caches import cached_bytes
    from knowledge.architectures import architecture
    from knowledge.config import TrainingConfig, with_values

    settings = {"base_model.family": "sdxl", "dataset.resolution": 1024, "dataset.bucket_maximum_side": 1024}
    kept = cached_bytes(with_values(TrainingConfig(), settings), architecture("sdxl"), 1)
    assert kept == module._numbers("memory.cache_latents")["bytes_per_pixel"] * 1024 * 1024
    settings |= {"memory.cache_text_encoder_outputs": True, "memory.precision": "bf16"}
    kept = cached_bytes(with_values(TrainingConfig(), settings), architecture("sdxl"), 1)
    assert kept == module._numbers("memory.cache_location")["sdxl_picture"]
