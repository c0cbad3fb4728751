"""Every rule speaks where it should and nowhere else, and its fix can be applied and helps."""

from dataclasses import fields as dataclass_fields
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from knowledge import config, library
from knowledge.config import TrainingConfig, value_of, with_values
from knowledge.expressions import names_in, placeholders
from knowledge.facts import DatasetFacts, FolderFacts, Hardware, Picture, facts
from knowledge.parameters import lookup_for, number, parameters
from knowledge.rules import SEVERITIES, apply_fix, check, example, rules

RULES = rules()
FIELDS = config.fields()
KNOWN_BESIDE_THE_CONFIG = (
    {f"dataset.{name}" for name, member in vars(DatasetFacts).items() if isinstance(member, property)}
    | {"dataset.broken", "dataset.captions_change", "dataset.pictures_change", "network.pull"}
    | {f"hardware.{field.name}" for field in dataclass_fields(Hardware)}
)


def found(rule, config_, others):
    return [finding for finding in check(facts(config_) | others) if finding.rule == rule.id]


def test_there_are_many_rules_each_with_its_own_id():
    assert len(RULES) >= 80
    assert len({rule.id for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_fires_and_stays_silent_where_it_says(rule):
    config_, others = example(rule.fires)
    (finding,) = found(rule, config_, others)
    assert "{" not in finding.message
    assert finding.message[-1] in ".)"
    assert finding.parameters
    assert not found(rule, *example(rule.silent))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_reads_only_what_exists(rule):
    assert rule.severity in SEVERITIES
    assert rule.sources
    assert set(rule.sources) <= set(library.sources()), set(rule.sources) - set(library.sources())
    assert set(rule.fix) <= set(FIELDS)
    read = {*names_in(rule.when), *placeholders(rule.message), *(n for v in rule.fix.values() for n in names_in(v))}
    for name in read | set(rule.fires) | set(rule.silent):
        name = name.removeprefix("recommended.")
        if name in FIELDS or name in KNOWN_BESIDE_THE_CONFIG or name.startswith("plan."):
            continue
        number(name)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.fix], ids=lambda rule: rule.id)
def test_a_fix_can_be_applied_and_silences_the_rule(rule):
    config_, others = example(rule.fires)
    (finding,) = found(rule, config_, others)
    assert finding.fix, "the fix needs facts that its own example lacks"
    fixed = apply_fix(config_, finding)
    assert fixed != config_
    assert all(value_of(fixed, name) == value for name, value in finding.fix.items())
    if not any(name.startswith("plan.") for name in names_in(rule.when)):
        assert not found(rule, fixed, others)


def test_findings_come_gravest_first():
    config_ = with_values(
        TrainingConfig(), {"optimizer.learning_rate": 1.0, "network.alpha": 64.0, "network.dropout": 0.9}
    )
    severities = [SEVERITIES.index(finding.severity) for finding in check(facts(config_))]
    assert severities[0] == 0
    assert severities == sorted(severities)


def test_a_plain_config_with_recommended_values_is_not_blocked():
    for family in ("pocket", "sd15", "sdxl"):
        path = "pocket" if family == "pocket" else "x.safetensors"
        known = facts(with_values(TrainingConfig(), {"base_model.family": family, "base_model.path": path}))
        from knowledge.parameters import recommended_values

        advised = with_values(
            with_values(TrainingConfig(), {"base_model.family": family, "base_model.path": path}),
            recommended_values(known),
        )
        graver = [f for f in check(facts(advised)) if f.severity != "note"]
        assert not graver, graver


# -- any config at all ------------------------------------------------------------------------------------------------


def _values(name):
    """Allowed values of a field, its limits and everyday ones among them."""
    field = FIELDS[name]
    kinds = {field.annotation, *get_args(field.annotation)}
    if config.choices(field):
        return st.sampled_from(config.choices(field))
    if bool in kinds:
        return st.booleans()
    entry = parameters()[name]
    step = next((m.multiple_of for m in field.metadata if hasattr(m, "multiple_of")), 1)
    low, high = entry.minimum, entry.maximum
    if int in kinds:
        whole = st.integers(-(-int(low) // step), min(int(high), 100_000) // step).map(lambda n: n * step)
        values = st.one_of(whole, st.sampled_from([n for n in (8, 16, 64, 512) if low <= n <= high] or [int(low)]))
    elif float in kinds:
        everyday = [value for value in (1e-6, 1e-4, 1e-2, 1.0) if low < value < high]
        values = st.floats(low, min(high, 1e5), exclude_min=True, exclude_max=True, allow_subnormal=False)
        values = st.one_of(values, st.sampled_from(everyday)) if everyday else values
    else:
        return None
    return st.one_of(st.none(), values) if type(None) in kinds else values


ELSEWHERE = {"network.rank_from_start"}
"""A plan reads the ranks from the file that the run starts from, and none of these starts from a file that is there."""
GENERATED = {
    name: values
    for name in FIELDS
    if "folders" not in name and name not in ELSEWHERE and (values := _values(name)) is not None
}


WRITTEN = {
    "base_model.path": ["pocket", "x.safetensors"],
    "base_model.vae": ["", "vae.safetensors"],
    "dataset.trigger_word": ["", "ohwx"],
    "dataset.keep_tokens_separator": ["", "|||"],
    "dataset.caption_prefix": ["", "photo, "],
    "network.block_ranks": ["", ",".join(["8"] * 25), ",".join(["0", "64"] * 11 + ["4"])],
    "network.conv_block_ranks": ["", ",".join(["8"] * 25)],
    "network.block_rates": ["", ",".join(["0.5"] * 25), ",".join(["1"] * 23)],
    "network.start_from": ["", "before.safetensors"],
    "optimizer.arguments": [{}, {"betas": (0.9, 0.99)}, {"d_coef": 3.0, "safeguard_warmup": False}, {"momentum": 0.0}],
    "sampling.prompts": [(), ("a cat",)],
    "sampling.negative_prompt": ["", "blurry"],
}
"""Values of the settings that are text, lists or tables."""


@st.composite
def configs(draw):
    names = draw(st.lists(st.sampled_from(sorted(GENERATED)), unique=True, max_size=25))
    changes = {name: draw(GENERATED[name]) for name in names}
    changes |= {name: draw(st.sampled_from(values)) for name, values in WRITTEN.items()}
    config_ = TrainingConfig()
    for name, value in changes.items():
        try:
            config_ = with_values(config_, {name: value})
        except ValidationError:
            continue  # the engine cannot honour it together with the others
    return config_


CARDS = st.sampled_from(
    [
        None,
        Hardware("CPU", ram_bytes=2**34, disk_free_bytes=2**30),
        Hardware("NVIDIA GeForce GTX 1660", vram_bytes=6 * 2**30, ram_bytes=2**33, capability=(7, 5)),
        Hardware("NVIDIA GeForce RTX 3060", vram_bytes=12 * 2**30, ram_bytes=2**35, capability=(8, 6)),
        Hardware("Apple M2", vram_bytes=16 * 2**30, ram_bytes=2**34),
    ]
)


def _folder(count, repeats, caption, width, regularisation=False):
    pictures = tuple(Picture(f"{i}.png", width + 64 * (i % 3), 512, caption) for i in range(count))
    return FolderFacts(pictures, repeats, regularisation)


DATASETS = st.builds(
    lambda count, repeats, caption, width, others, broken: DatasetFacts(
        (
            _folder(count, repeats, caption, width),
            *([_folder(others, 1, None, 512, regularisation=True)] if others else []),
        ),
        broken,
    ),
    st.integers(1, 400),
    st.integers(1, 20),
    st.sampled_from([None, "ohwx, cat, beach", "A very long and winding sentence about a cat that sits on a beach"]),
    st.sampled_from([640, 96, 3000]),
    st.sampled_from([0, 0, 1, 500]),
    st.sampled_from([(), ("torn.png",)]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config_=configs(), dataset=st.one_of(st.none(), DATASETS), hardware=CARDS)
def test_applying_every_offered_fix_ends_without_a_blocking_finding(config_, dataset, hardware):
    for _ in range(60):
        offered = [finding for finding in check(facts(config_, dataset, hardware)) if finding.fix]
        if not offered:
            break
        config_ = apply_fix(config_, offered[0])
    left = check(facts(config_, dataset, hardware))
    assert not [finding for finding in left if finding.fix], "fixes chase each other"
    assert not [finding for finding in left if finding.severity == "blocks"]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    config_=configs(),
    dataset=DATASETS,
    hardware=CARDS.filter(bool),
    order=st.randoms(use_true_random=False),
    processes=st.sampled_from([1, 1, 4]),
)
def test_fixes_taken_in_any_order_end_without_a_blocking_finding_when_the_plan_follows_them(
    config_, dataset, hardware, order, processes
):
    from calculator.plan import plan

    def findings():
        made = plan(config_, dataset, hardware, processes=processes)
        return check(facts(config_, dataset, hardware, made.facts()))

    taken = []
    while offered := [finding for finding in findings() if finding.fix]:
        finding = order.choice(offered)
        taken.append(finding.rule)
        assert len(taken) < 80, f"fixes chase each other: {taken[-8:]}"
        config_ = apply_fix(config_, finding)
    assert not [finding for finding in findings() if finding.severity == "blocks"]


def test_the_pocket_models_family_can_be_set_whatever_was_set_for_sdxl_alone():
    rates = ",".join(["0.5"] * 23)
    config_ = with_values(
        TrainingConfig(),
        {
            "base_model.path": "pocket",
            "base_model.family": "sdxl",
            "network.block_rates": rates,
            "optimizer.text_encoder_2_learning_rate": 1e-5,
        },
    )
    (finding,) = [finding for finding in check(facts(config_)) if finding.rule == "pocket-path-other-family"]
    fixed = apply_fix(config_, finding)
    assert (fixed.base_model.family, fixed.network.block_rates) == ("pocket", "")


def test_another_optimizer_comes_without_arguments_that_it_does_not_take():
    config_ = with_values(
        TrainingConfig(), {"optimizer.name": "sgd", "optimizer.arguments": {"momentum": 0.0, "nesterov": False}}
    )
    (finding,) = [finding for finding in check(facts(config_)) if finding.rule == "plain-gradient-descent"]
    fixed = apply_fix(config_, finding)
    assert (fixed.optimizer.name, fixed.optimizer.arguments) == ("adamw", {})
    paged = with_values(
        TrainingConfig(), {"optimizer.name": "adamw8bit", "optimizer.arguments": {"eps": 1e-6, "min_8bit_size": 64}}
    )
    (finding,) = [
        finding for finding in check(facts(paged, hardware=Hardware("CPU"))) if finding.rule == "eight-bit-on-a-cpu"
    ]
    assert apply_fix(paged, finding).optimizer.arguments == {"eps": 1e-6}


@pytest.mark.parametrize(
    "hardware",
    [
        Hardware("CPU"),
        Hardware("NVIDIA GeForce GTX 1660", vram_bytes=6 * 2**30, capability=(7, 5)),
        Hardware("NVIDIA GeForce RTX 2070", vram_bytes=8 * 2**30, capability=(7, 5)),
    ],
    ids=lambda hardware: hardware.name,
)
def test_a_precision_for_this_card_takes_along_what_only_another_can_have(hardware):
    changes = {"memory.precision": "bf16", "memory.full_half": True, "memory.fused_backward": True}
    config_ = with_values(
        TrainingConfig(),
        {"base_model.family": "sd15", "base_model.path": "x.safetensors", "optimizer.maximum_gradient_norm": 0.0}
        | changes,
    )
    offered = [f for f in check(facts(config_, hardware=hardware)) if "memory.precision" in f.fix]
    assert offered
    for finding in offered:
        assert not apply_fix(config_, finding).memory.full_half


@pytest.mark.parametrize(("images", "batch_size"), [(1, 1), (2, 2), (20, 16)])
def test_too_few_updates_and_pictures_seen_too_often_do_not_undo_each_other(images, batch_size):
    from calculator.plan import plan

    config_ = with_values(
        TrainingConfig(),
        {"base_model.family": "sd15", "base_model.path": "x.safetensors", "schedule.batch_size": batch_size},
    )
    dataset, hardware = DatasetFacts((_folder(images, 1, "a cat", 640),)), Hardware("CPU")
    taken: list[str] = []
    while offered := [
        finding
        for finding in check(facts(config_, dataset, hardware, plan(config_, dataset, hardware).facts()))
        if finding.rule in ("few-updates", "few-updates-of-many-pictures", "pictures-seen-too-often") and finding.fix
    ]:
        taken.append(offered[0].rule)
        assert len(taken) < 6, taken
        config_ = apply_fix(config_, offered[0])
    assert "few-updates" in taken


def test_fewer_pictures_in_an_update_never_make_a_larger_batch():
    values = {"schedule.batch_size": 100, "schedule.gradient_accumulation_steps": 271, "schedule.epochs": 100}
    known = facts(with_values(TrainingConfig(), values)) | {"plan.total_steps": 100, "plan.views_per_image": 200}
    (finding,) = [finding for finding in check(known) if finding.rule == "few-updates-of-many-pictures"]
    fixed = apply_fix(with_values(TrainingConfig(), values), finding).schedule
    assert fixed.batch_size <= 100
    assert fixed.batch_size * fixed.gradient_accumulation_steps < 100 * 271


def test_a_fix_that_is_made_already_is_not_offered_again():
    known = facts(with_values(TrainingConfig(), {"saving.keep_last": 3}))
    full = known | {"plan.disk_bytes": 2**40, "plan.saved_files": 3, "hardware.disk_free_bytes": 2**30}
    (finding,) = [finding for finding in check(full) if finding.rule == "disk-too-full"]
    assert not finding.fix


def test_a_missing_fact_keeps_a_rule_silent_instead_of_failing():
    assert all("plan." not in finding.message for finding in check(facts(TrainingConfig())))
    lookup = lookup_for(None, {})
    with pytest.raises(KeyError):
        lookup("plan.total_steps")


# -- with the plan ----------------------------------------------------------------------------------------------------

SITUATIONS = [
    ({"base_model.family": "sdxl", "dataset.resolution": 1024, "dataset.bucket_maximum_side": 2048}, 20, 8, (8, 6)),
    ({"base_model.family": "sdxl", "schedule.batch_size": 8, "memory.precision": "bf16"}, 50, 12, (8, 6)),
    ({"base_model.family": "sdxl", "network.train_text_encoder": True, "memory.precision": "bf16"}, 8, 6, (8, 6)),
    ({"base_model.family": "sd15", "schedule.epochs": 500, "saving.every_epochs": 1}, 12, 24, (8, 9)),
    ({"base_model.family": "sd15", "schedule.gradient_accumulation_steps": 64, "schedule.epochs": 3}, 12, 8, (7, 5)),
    ({"base_model.family": "sd15", "schedule.maximum_steps": 5, "schedule.warmup": 100.0}, 30, 4, (6, 1)),
    ({"schedule.epochs": 1, "sampling.prompts": ("a",), "sampling.every_epochs": 1}, 12, 0, None),
    ({"schedule.epochs": 3000, "sampling.prompts": ("a", "b"), "sampling.every_epochs": 1}, 3, 0, None),
    ({"schedule.scheduler": "cosine_with_restarts", "schedule.cycles": 50, "schedule.batch_size": 64}, 40, 0, None),
    ({"optimizer.name": "prodigy", "schedule.scheduler": "adafactor", "network.train_text_encoder": True}, 12, 0, None),
    ({"dataset.buckets": False, "dataset.resolution": 16, "optimizer.learning_rate": 3e-309}, 12, 0, None),
]


@pytest.mark.parametrize(("changes", "images", "gigabytes", "capability"), SITUATIONS)
def test_fixes_come_to_rest_when_every_fix_changes_the_plan(changes, images, gigabytes, capability):
    from calculator.plan import plan

    path = "x.safetensors" if "base_model.family" in changes else "pocket"
    config_ = with_values(TrainingConfig(), {"base_model.path": path, **changes})
    pictures = tuple(Picture(f"{i}.png", 640 + 64 * (i % 3), 640, "a cat") for i in range(images))
    dataset = DatasetFacts((FolderFacts(pictures, 1),))
    hardware = Hardware("a card", gigabytes * 2**30, 2**35, 2**37, capability)

    def findings():
        return check(facts(config_, dataset, hardware, plan(config_, dataset, hardware).facts()))

    for _ in range(60):
        offered = [finding for finding in findings() if finding.fix]
        if not offered:
            break
        config_ = apply_fix(config_, offered[0])
    left = findings()
    assert not [finding.rule for finding in left if finding.fix], "fixes chase each other"
    assert not [finding for finding in left if finding.severity == "blocks"]


def test_rules_name_only_facts_that_a_plan_has():
    from calculator.plan import plan

    made = plan(TrainingConfig(), DatasetFacts((FolderFacts((Picture("a.png", 64, 64),)),)), Hardware("CPU"))
    known = set(made.facts())
    for rule in RULES:
        read = {*names_in(rule.when), *placeholders(rule.message), *(n for v in rule.fix.values() for n in names_in(v))}
        assert {name for name in read if name.startswith("plan.")} <= known, rule.id
