"""The guided path: asks its way along it, goes back, opens more settings, and ends on the review."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from knowledge.config import TrainingConfig
from knowledge.parameters import parameters
from wizard import drafts, forms, questions, settings, steps, views, words
from wizard import situation as situations
from wizard.prompts import Asker, Move, Option, Page, ask
from wizard.review import review
from wizard.situation import Situation, Workbench
from wizard.steps import REVIEW, Draft

if TYPE_CHECKING:
    from rich.console import RenderableType

Found = TypeVar("Found")
MOST_CHANGES_TOLD = 4


@dataclass
class Session:
    """One way along the path: the answers so far, and whoever is asked."""

    bench: Workbench = field(default_factory=Workbench)
    draft: Draft = field(default_factory=Draft)
    asker: Asker = ask
    notice: str = ""
    asked: bool = False
    keep: Callable[[Draft], None] = drafts.save

    def situation(self) -> Situation:
        return self.bench.situation(self.draft.values)

    def estimate(self) -> RenderableType | None:
        """The running estimate; None while the pictures are unknown."""
        from wizard import estimate

        situation = self.situation()
        return None if situation.plan is None else estimate.line(situation.plan, situation.hardware)

    def ask(self, page: Page) -> Any:
        """The answer to a page; what there is to tell from the answer before stands on it once."""
        if self.notice:
            page = replace(page, body=(f"[good]✓[/] {views.escape(self.notice)}", *page.body))
            self.notice = ""
        self.asked = True
        return self.asker(page)

    def answer(self, values: Mapping[str, Any]) -> None:
        """Takes the values in and keeps the draft. Raises ValidationError where they do not go with the others."""
        draft = self.draft
        for name, value in values.items():
            draft = draft.answered(name, value)
        self.bench.situation(draft.values)
        self.move(draft)

    def settle(
        self,
        name: str,
        around: Mapping[str, Any],
        take: Callable[[Mapping[str, Any]], None],
        *,
        form: str = "",
        ask: str = "",
    ) -> Move | None:
        """Asks for one setting until `take` can have the values with the others, or until somebody goes elsewhere."""
        error, typed = "", False
        while True:
            if form in forms.FORMS:
                answer: Any = forms.FORMS[form](self, {**around, "error": error})
            else:
                offers = form == "offers"
                values = self.draft.values
                page = questions.page(
                    self.bench, values, name, ask=ask, offers=offers, typed=typed, error=error, **around
                )
                answer = self.ask(page)
            if answer is questions.OTHER:
                typed, error = True, ""
            elif isinstance(answer, Move) and typed:
                typed, error = False, ""
            elif isinstance(answer, Move):
                return answer
            else:
                try:
                    take(answer if form in forms.FORMS else {name: answer})
                except ValidationError as conflict:
                    error = questions.conflict(conflict)
                else:
                    return None

    def tell_changes(self, before: TrainingConfig) -> None:
        """Makes the next page say what has changed since, and what changed with it."""
        names = settings.every_name()
        changes = situations.changed(before, self.situation().config, names)
        said = [questions.change_words(parameters()[name], old, new) for name, (old, new) in changes.items()]
        rest = len(said) - MOST_CHANGES_TOLD
        self.notice = ", ".join(said[:MOST_CHANGES_TOLD]) + (f" and {rest} more" if rest > 0 else "")

    def move(self, draft: Draft) -> None:
        self.draft = draft
        if draft.values:
            self.keep(draft)

    def wording(self, name: str) -> str:
        """The question in words."""
        question = steps.questions().get(name)
        return question.ask if question else parameters()[name].title

    def waiting(self, message: str, work: Callable[[], Found]) -> Found:
        """The result of something that may take a while."""
        if views.plain_terminal():
            return work()
        with views.console().status(message):
            return work()

    # --- the path

    def run(self) -> str:
        """Asks until the review is left: "train" or "save". Raises KeyboardInterrupt; the draft is kept by then."""
        at = self.draft.at or self._first_open()
        while True:
            facts = self.situation().facts
            self.move(self.draft.moved(at))
            if at == REVIEW:
                outcome = review(self, self._around(REVIEW))
                if isinstance(outcome, Move):
                    at = steps.previous_question(REVIEW, facts)
                    continue
                return outcome
            moved = self._ask_question(at)
            facts = self.situation().facts
            if moved is Move.BACK:
                at = steps.previous_question(at, facts)
            elif moved is Move.MORE:
                self._more(at)
            else:
                at = steps.next_question(at, facts)

    def _first_open(self) -> str:
        """The first question that was not answered by a file or an option."""
        possible = steps.path(self.situation().facts)
        return next((name for name in possible if name not in self.draft.values), REVIEW)

    def _ask_question(self, name: str) -> Move | None:
        """Asks one question of the path until it is answered or left."""
        question = steps.questions()[name]
        return self.settle(
            name, self._around(name), lambda values: self._take(name, values), form=question.form, ask=question.ask
        )

    def _take(self, name: str, values: Mapping[str, Any]) -> None:
        """Takes an answer in; one that equals the recommendation follows it from then on."""
        advice = self.bench.advice(self.draft.values, name)
        if list(values) == [name] and advice is not None and values[name] == advice.value:
            self.move(self.draft.with_recommended(name))
        else:
            self.answer(values)

    def _more(self, name: str) -> None:
        """More settings of this step's sections."""
        around = self._around(name)
        step = steps.step_of(name)
        if len(step.more) == 1:
            settings.browse_section(self, step.more[0], around)
            return
        at: Any = None
        while not isinstance(at, Move):
            at = self.ask(
                Page(
                    title="More settings",
                    options=tuple(
                        Option(s, settings.title_of(s), words.count(len(settings.names_in(s)), "setting"))
                        for s in step.more
                    ),
                    default=at,
                    preview=lambda value: self.estimate(),
                    **{**around, "back": "back", "more": False},
                )
            )
            if not isinstance(at, Move):
                settings.browse_section(self, at, around)

    def _around(self, name: str) -> dict[str, Any]:
        """Where a page stands on the path, and what its keys lead to."""
        titles = [step.name for step in steps.steps()]
        total = len(titles) + 1
        if name == REVIEW:
            return {"place": "Review", "progress": (total, total), "back": "back"}
        step = steps.step_of(name)
        first = name == steps.path(self.situation().facts)[0]
        return {
            "place": step.title,
            "progress": (titles.index(step.name) + 1, total),
            "back": "" if first else "back",
            "more": True,
        }
