"""OneTrainer's block for its optimizer, both ways: our rows of numbers are single settings there."""

from __future__ import annotations

from typing import Any

from knowledge.formats.sorting import take_optimizer
from knowledge.formats.translation import Translation
from knowledge.formats.values import as_bool, as_number, is_empty
from knowledge.formats.vocabulary import facts_of, foreign_choice
from knowledge.optimizer_arguments import (
    all_arguments,
    argument_problems,
    as_arguments,
    decided_elsewhere,
    known_arguments,
    unusual_arguments,
)

DIALECT = "onetrainer"
FUSED = {"ADAFACTOR", "CAME", "CAME_8BIT", "ADAM", "ADAMW", "PRODIGY_PLUS_SCHEDULE_FREE"}
"""Its optimizers that can update a weight as soon as its gradient is known, of those that ours come from."""


def read_optimizer(job: Translation, beside: Any) -> None:
    """The optimizer with its arguments; what it would be without any is said by the other trainer's defaults."""
    word = str(job.get("optimizer.optimizer", "ADAMW"))
    name: str | None = "adamw"
    if as_bool(job.get("optimizer.is_paged")) and word == "ADAMW_8BIT":
        name = "paged_adamw8bit"
        for key in ("optimizer.optimizer", "optimizer.is_paged"):
            job.mapped(key, "optimizer.name", name)
    elif "optimizer.optimizer" in job.source:
        name = take_optimizer(job, "optimizer.optimizer")
    _take_arguments(job, name)
    for key in [key for key in job.source if key.startswith("optimizer.") and not job.done(key)]:
        _other_setting(job, key, word, name)


def _take_arguments(job: Translation, name: str | None) -> None:
    """Arguments that ours has as well, by the settings that they are made of."""
    if name is None:
        return
    scheduler = "adafactor" if job.get("learning_rate_scheduler") == "ADAFACTOR" else "constant"
    facts = facts_of("onetrainer")
    usual = all_arguments(name, {}, scheduler)
    found: dict[str, Any] = dict(facts["optimizer_defaults"].get(name, {}))
    for argument, parts in facts["optimizer_arguments"][name].items():
        keys = [f"optimizer.{part}" for part in parts]
        given = [key for key in keys if job.source.get(key) is not None]
        if not given:
            continue
        value = _value(job, keys, known_arguments(name)[argument], usual.get(argument))
        problem = _refusal(name, argument, value)
        for key in given:
            if problem:
                job.unsupported(key, f"{problem} The optimizer's own value stays.")
            else:
                found[argument] = value
                job.added(key, "optimizer.arguments", {argument: value})
    job.implied["optimizer.arguments"] = {}
    job.values["optimizer.arguments"] = unusual_arguments(name, found, scheduler)


def _value(job: Translation, keys: list[str], known: Any, usual: Any) -> Any:
    """One argument of ours out of the settings that it is made of; what is not set is as usual here."""
    if isinstance(known, list):
        parts = [as_number(job.source.get(key)) for key in keys]
        return tuple(own if part is None else part for part, own in zip(parts, usual, strict=True))
    value = job.source[keys[0]]
    if isinstance(known, bool):
        return as_bool(value)
    number = as_number(value)
    return int(number) if isinstance(known, int) and number is not None and number == int(number) else number


def _refusal(name: str, argument: str, value: Any) -> str:
    try:
        return next(iter(argument_problems(name, as_arguments({argument: value}))), "")
    except ValueError as problem:
        return str(problem)


def _other_setting(job: Translation, key: str, word: str, name: str | None) -> None:
    """What is no argument of ours: a setting of its own here, nothing at all, or something lost."""
    setting, value = key.rpartition(".")[2], job.source[key]
    if setting == "weight_decay" and value is not None:
        job.mapped(key, "optimizer.weight_decay", value)
    elif setting == "fused_back_pass" and as_bool(value) and word in FUSED:
        job.mapped(key, "memory.fused_backward", True)
    elif setting == "warmup_init" and as_bool(value):
        job.mapped(key, "schedule.warmup_init", True)
    elif setting in ("relative_step", "scale_parameter") and job.get("learning_rate_scheduler") == "ADAFACTOR":
        job.no_effect(key, "It goes with its schedule, as here.")
    elif is_empty(value) or as_bool(value) is False:
        job.no_effect(key, "It is not set.")
    elif setting in decided_elsewhere():
        job.no_effect(
            key, f"Of that {decided_elsewhere()[setting]}.".replace("Of that it", "It").replace("Of that ", "Here ")
        )
    elif name is None:
        job.unsupported(key, f"It belongs to {word}, which is not among our optimizers.")
    elif setting in _all_arguments():
        job.no_effect(key, f"{word} does not read it.")
    else:
        job.unsupported(key, f"It sets {setting} of the optimizer, which {name} does not have here.")


def _all_arguments() -> set[str]:
    rows = facts_of("onetrainer")["optimizer_arguments"].values()
    return {part for row in rows for parts in row.values() for part in parts}


def written_optimizer(job: Any) -> dict[str, Any]:
    """The block for our optimizer, every argument of it told; `job` is the Writing of an export."""
    name = job.value("optimizer.name")
    word = "ADAMW_8BIT" if name == "paged_adamw8bit" else foreign_choice("optimizer.name", DIALECT, name)
    if word is None:
        job.lose("optimizer.name", "It does not have this optimizer; AdamW takes its place.")
        if job.config.optimizer.arguments:
            job.lose("optimizer.arguments", "They belong to an optimizer that it does not have.")
    scheduler = job.config.schedule.scheduler
    block: dict[str, Any] = {
        "optimizer": word or "ADAMW",
        "weight_decay": job.value("optimizer.weight_decay"),
        "is_paged": name == "paged_adamw8bit",
        "fused_back_pass": job.value("memory.fused_backward") and word in FUSED,
    }
    if job.config.memory.fused_backward and word not in FUSED:
        job.lose("memory.fused_backward", "It cannot do so with this optimizer.")
    if word == "ADAFACTOR":
        own = scheduler == "adafactor"
        block |= {"relative_step": own, "warmup_init": job.value("schedule.warmup_init")}
    names = facts_of("onetrainer")["optimizer_arguments"].get(name, {}) if word else {}
    arguments = job.value("optimizer.arguments")
    if word and set(unusual_arguments(name, arguments, scheduler)) - set(names):
        job.lose("optimizer.arguments", "Its optimizer does not take all of them.")
    for argument, value in all_arguments(name, arguments, scheduler).items():
        if argument in names:
            parts = value if isinstance(value, tuple) else (value,)
            block |= {key: part for key, part in zip(names[argument], parts, strict=True) if _finite(part)}
    return block


def _finite(value: Any) -> bool:
    """Can JSON hold it? An unlimited growth is what nothing at all means there."""
    return not isinstance(value, float) or value != float("inf")
