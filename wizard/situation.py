"""Where a set of answers leads: the config, the pictures, the plan and the findings that follow from it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from calculator.measurements import Measurement, read_measurements
from calculator.plan import Plan, plan
from knowledge.answers import PlainError, plain_problems
from knowledge.config import (
    POCKET_MODEL,
    DatasetSettings,
    TrainingConfig,
    choices,
    fields,
    value_of,
    with_values,
)
from knowledge.facts import DatasetFacts, Hardware, facts
from knowledge.parameters import Recommendation, recommended, recommended_values
from knowledge.rules import Finding, check
from knowledge.starting_network import start_problem
from wizard import suggestions
from wizard.drafts import user_folder


@dataclass(frozen=True)
class Situation:
    """All that is known for one set of answers.

    `problem` says why the pictures, or the file that ranks come from, cannot be read, when they cannot; `absent`,
    what a run would lack though its plan is known. `settled` are the parameters whose recommendation comes from a
    finding that was settled before anybody had to see it.
    """

    config: TrainingConfig
    dataset: DatasetFacts | None
    hardware: Hardware
    problem: str = ""
    absent: str = ""
    settled: Mapping[str, Finding] = field(default_factory=dict)
    processes: int = 1

    @cached_property
    def plan(self) -> Plan | None:
        """What the run would do; None while the pictures are unknown, or something else that it hangs on."""
        if self.dataset is None or self.problem:
            return None
        return plan(self.config, self.dataset, self.hardware, self.architecture, measurements_here(), self.processes)

    @cached_property
    def architecture(self) -> Any:
        return _architecture(self.config.base_model.path, self.config.base_model.family)

    @cached_property
    def facts(self) -> dict[str, Any]:
        return facts(self.config, self.dataset, self.hardware, self.plan.facts() if self.plan else None)

    @cached_property
    def findings(self) -> list[Finding]:
        return check(self.facts)

    @property
    def hindrances(self) -> list[str]:
        """Every sentence of `problem` and `absent`, which may tell of the same file, once."""
        return list(dict.fromkeys([*self.problem.splitlines(), *self.absent.splitlines()]))

    @property
    def blocked(self) -> bool:
        return bool(self.hindrances) or any(finding.severity == "blocks" for finding in self.findings)


@dataclass
class Workbench:
    """Works situations out and remembers what is slow to find: the pictures and the computer.

    `base` is what holds where nothing was chosen; with `recommend`, recommendations come before it.
    """

    base: TrainingConfig = field(default_factory=TrainingConfig)
    recommend: bool = True
    processes: int = 1
    _scans: dict[Any, DatasetFacts | str] = field(default_factory=dict)
    _situations: dict[Any, Situation] = field(default_factory=dict)

    @cached_property
    def hardware(self) -> Hardware:
        from wizard.hardware import this_computer

        return this_computer()

    def situation(self, chosen: Mapping[str, Any]) -> Situation:
        """The situation of these chosen values, everything else recommended.

        Raises pydantic.ValidationError where the chosen values do not go together.
        """
        key = repr(sorted(chosen.items()))
        if key not in self._situations:
            self._situations[key] = self._advised(chosen) if self.recommend else self._plain(chosen)
        return self._situations[key]

    def _plain(self, chosen: Mapping[str, Any]) -> Situation:
        dataset, problem = self.pictures(self._dataset_settings(chosen))
        config = self._agreed({}, chosen)
        return Situation(
            config, dataset, self.hardware, problem or start_problem(config.network), processes=self.processes
        )

    def _advised(self, chosen: Mapping[str, Any]) -> Situation:
        """The situation in which everything that nobody chose is recommended.

        A remark on it whose fix touches nothing chosen is settled at once, since nobody should be warned of what was
        recommended: recommendations know the facts, and only the rules know the plan that follows from them.
        """
        settings = self._dataset_settings(chosen)
        dataset, trouble = self.pictures(settings)
        known = {**facts(self.base, dataset, self.hardware), **chosen}
        proposed = suggestions.proposed(known, settings, dataset)
        settled: dict[str, Finding] = {}
        fixes: dict[str, Any] = {}
        tried: set[str] = set()
        while True:
            advised = recommended_values({**known, **fixes}, chosen={*chosen, *fixes})
            config = self._agreed({**proposed, **advised, **fixes}, chosen)
            problem = trouble or start_problem(config.network)
            situation = Situation(config, dataset, self.hardware, problem, settled=settled)
            finding = next((f for f in situation.findings if _settles(f, chosen) and f.rule not in tried), None)
            if finding is None:
                return situation
            tried.add(finding.rule)
            disputed = finding.fix.keys() & fixes.keys()  # two rules that pull apart: neither outweighs the advice
            fixes = {name: value for name, value in {**finding.fix, **fixes}.items() if name not in disputed}
            settled = {name: settled.get(name, finding) for name in fixes}

    def _dataset_settings(self, chosen: Mapping[str, Any]) -> DatasetSettings:
        """The dataset section alone: what the pictures are does not hang on the other sections."""
        section = {name.removeprefix("dataset."): v for name, v in chosen.items() if name.startswith("dataset.")}
        return DatasetSettings.model_validate({**self.base.dataset.model_dump(), **section})

    def _agreed(self, advised: dict[str, Any], chosen: Mapping[str, Any]) -> TrainingConfig:
        """The config of these values, in which what nobody chose gives way to what somebody did.

        An advised value that contradicts a choice is left out; a switch at its default that does is turned, and another
        value taken from a list where the contradiction names one. Raises ValidationError where the choices contradict
        each other.
        """
        try:
            return with_values(self.base, {**advised, **chosen})
        except ValidationError as error:
            sentences = "\n".join(plain_problems(error))
            named = {name for name in fields() if name not in chosen and re.search(rf"\b{name}\b", sentences)}
            if named & advised.keys():
                kept = {name: value for name, value in advised.items() if name not in named}
                return self._agreed(kept, chosen)
            for name, value in self._others(named, sentences):
                try:
                    return self._agreed(advised, {**chosen, name: value})
                except ValidationError:
                    continue
            raise

    def _others(self, names: set[str], sentences: str) -> Iterator[tuple[str, Any]]:
        """What these settings could be instead: switches turned, then the values of lists that the sentences name.

        What the base model is stays as it is.
        """
        switches = sorted(name for name in names if fields()[name].annotation is bool)
        yield from ((name, not value_of(self.base, name)) for name in switches)
        for name in sorted(name for name in names if not name.startswith("base_model.")):
            told = (value for value in choices(fields()[name]) if re.search(rf"\b{re.escape(value)}\b", sentences))
            yield from ((name, value) for value in told if value != value_of(self.base, name))

    def advice(self, chosen: Mapping[str, Any], name: str) -> Recommendation | None:
        """The Recommendation for one parameter when everything else stays as chosen; None where there is none."""
        situation = self.situation({other: value for other, value in chosen.items() if other != name})
        if name in situation.settled:
            return Recommendation(value_of(situation.config, name), situation.settled[name].message)
        return recommended(name, situation.facts)

    def pictures(self, settings: DatasetSettings) -> tuple[DatasetFacts | None, str]:
        """What lies in the dataset folders, or why it cannot be read; both empty while no folder is named."""
        if not settings.folders:
            return None, ""
        key = (settings.folders, settings.caption_extension)
        if key not in self._scans:
            from engine.dataset.folders import scan

            try:
                self._scans[key] = scan(settings)
            except PlainError as problem:
                self._scans[key] = str(problem)
        found = self._scans[key]
        return (None, found) if isinstance(found, str) else (found, "")

    def forget_pictures(self) -> None:
        """Looks at the folders again the next time: somebody may have put pictures there."""
        self._scans.clear()
        self._situations.clear()


def _settles(finding: Finding, chosen: Mapping[str, Any]) -> bool:
    """Whether a finding has a fix that changes nothing that somebody chose."""
    return bool(finding.fix) and not finding.fix.keys() & chosen.keys()


@lru_cache(maxsize=1)
def measurements_here() -> tuple[Measurement, ...]:
    """The timings of this computer, read once."""
    return read_measurements(user_folder() / "measurements.jsonl")


_architectures: dict[tuple[str, str], Any] = {}


def _architecture(path: str, family: str) -> Any:
    """The shapes of the base model itself where its folder tells them; None for what the family's usual shapes fit."""
    from engine.pocket import MODEL_FOLDER
    from knowledge.architectures import architecture_in

    folder = MODEL_FOLDER if path == POCKET_MODEL else Path(path).expanduser()
    key = (os.fspath(folder), family)
    if key not in _architectures:
        _architectures[key] = architecture_in(folder, family)
    return _architectures[key]


def changed(before: TrainingConfig, after: TrainingConfig, names: Any) -> dict[str, tuple[Any, Any]]:
    """The parameters among `names` whose values differ, each with the value before and after."""
    return {
        name: (value_of(before, name), value_of(after, name))
        for name in names
        if value_of(before, name) != value_of(after, name)
    }
