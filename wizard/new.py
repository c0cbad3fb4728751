"""`lora-wizard new`: the guided path as a command, its answers as options, and what follows when it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from knowledge.answers import PlainError, parse_assignment, plain_problems, quoted, read_answers, write_answers
from knowledge.config import TrainingConfig, choices, fields, value_of
from wizard import base_models, computer, drafts, forms, settings, steps, views, words
from wizard.prompts import Option, Page
from wizard.review import answers_path, summary, told
from wizard.session import Session
from wizard.situation import Situation
from wizard.steps import REVIEW, Draft, StepQuestion


def _keyword(parameter: str) -> str:
    """The name under which click hands over the answer to a question."""
    return "answer_" + parameter.replace(".", "_")


def _option_help(question: StepQuestion) -> str:
    """The question in words, what may be answered where that is a list, and whether it may be answered twice."""
    listed = choices(fields()[question.parameter])
    several = " May be given several times." if question.form in ("prompts", "pictures") else ""
    one_of = f" One of: {', '.join(listed)}." if listed else ""
    return f"{question.ask}{one_of}{several}"


def question_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for every question of the path, named in steps.toml."""
    for question in reversed(list(steps.questions().values())):
        command = click.option(
            question.flag,
            _keyword(question.parameter),
            metavar=question.metavar,
            multiple=question.form in ("prompts", "pictures"),
            help=_option_help(question),
        )(command)
    return command


_FILE = click.Path(path_type=Path)


@click.command(epilog="Example: lora-wizard new --pictures ~/photos/mila --goal character --base-model pocket --yes")
@click.option("--from", "from_file", metavar="FILE", type=_FILE, help="Open saved answers, to change them.")
@click.option(
    "--answers", "answers_file", metavar="FILE", type=_FILE, help="Take these answers; recommended ones fill gaps."
)
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Any setting, as in network.rank=32.")
@question_options
@click.option("--yes", is_flag=True, help="Accept what is recommended for all the rest, and start training.")
@click.option("--train/--no-train", "start", default=None, help="Start training at the end, or only save the answers.")
@click.option("--output", metavar="FILE", type=_FILE, help="Where to save the answers.")
@click.option("--dry-run", is_flag=True, help="Show the review and save nothing.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print config, plan and findings as one JSON document; train only with --train.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def new(
    from_file: Path | None = None,
    answers_file: Path | None = None,
    assignments: tuple[str, ...] = (),
    yes: bool = False,
    start: bool | None = None,
    output: Path | None = None,
    dry_run: bool = False,
    as_json: bool = False,
    debug: bool = False,
    **flags: Any,
) -> int:
    """The guided path, from your pictures to a trained LoRA.

    It asks one thing after the other, shows what each answer costs, and lets you go back. Ctrl-C leaves; the answers
    so far are kept. Without a terminal, give the answers as options and add --yes.
    """
    if from_file and answers_file:
        raise PlainError("--from and --answers both name a file of answers; give one of them.", 2)
    session = Session()
    _take_answers(session, from_file, answers_file, flags, assignments)
    complete = bool(from_file or answers_file)
    if yes or as_json or dry_run:
        _require(session, complete)
        wanted = start if start is not None else yes and not as_json
        return _conclude(session, wanted, output, dry_run=dry_run, as_json=as_json, debug=debug)
    if not views.interactive():
        _refuse_without_terminal(session, complete)
    outcome = _guided(session, fresh=not session.draft.values)
    wanted = start if start is not None else outcome == "train"
    return _conclude(session, wanted, output, debug=debug)


def _take_answers(
    session: Session,
    from_file: Path | None,
    answers_file: Path | None,
    flags: Mapping[str, Any],
    assignments: tuple[str, ...],
) -> None:
    """Takes in what the files and options say, files first. Raises PlainError naming all that is wrong together."""
    values: dict[str, Any] = {}
    if from_file:
        config = read_answers(from_file)
        values = {name: plain(value_of(config, name)) for name in settings.every_name()}
    elif answers_file:
        config = read_answers(answers_file)
        values = {name: plain(value_of(config, name)) for name in settings.every_name() if _was_said(config, name)}
    problems: list[str] = []
    for question in steps.questions().values():
        said = flags.get(_keyword(question.parameter))
        if said is None or said == ():
            continue
        try:
            values |= forms.read_all(question.parameter, question.form, said)
        except PlainError as problem:
            problems.append(f"{question.flag}: {problem}")
    for assignment in assignments:
        try:
            name, value = parse_assignment(assignment)
            values[name] = value
        except PlainError as problem:
            problems.append(str(problem))
    if not problems:
        try:
            if values.get("base_model.path") and "base_model.family" not in values:
                values |= base_models.model_at(values["base_model.path"])
            session.bench.situation(values)
        except ValidationError as error:
            problems = plain_problems(error)
        except KeyError as error:
            problems = [f"--set cannot change {error.args[0]} on its own; write it in an answers file."]
        except PlainError as problem:
            problems = [str(problem)]
    if problems:
        raise PlainError("\n".join(problems), 2)
    session.draft = Draft(values)


def plain(value: Any) -> Any:
    """A config's value as a draft keeps it: folders as tables."""
    return (
        tuple(v.model_dump() if hasattr(v, "model_dump") else v for v in value) if isinstance(value, tuple) else value
    )


def _was_said(config: TrainingConfig, name: str) -> bool:
    """Whether the file that this config was read from names the parameter."""
    section, _, key = name.rpartition(".")
    return key in (getattr(config, section) if section else config).model_fields_set


def _missing(session: Session, complete: bool) -> list[str]:
    """What has to be answered and was not, as the option that would answer it and the question."""
    situation = session.situation()
    return [
        f"{question.flag} {question.metavar}  {_option_help(question)}"
        for question in steps.questions().values()
        if question.required
        and question.parameter not in session.draft.values
        and not (complete and value_of(situation.config, question.parameter))
    ]


def _require(session: Session, complete: bool) -> None:
    missing = _missing(session, complete)
    if missing:
        raise PlainError(
            "\n".join(["These answers are missing, and nothing can be recommended for them:", *missing]), 2
        )


def _refuse_without_terminal(session: Session, complete: bool) -> None:
    missing = _missing(session, complete)
    lines = ["There is no terminal here to ask questions on. Add --yes to accept what is recommended."]
    if missing:
        lines += ["These answers are needed as well:", *missing]
    raise PlainError("\n".join(lines), 2)


def _guided(session: Session, *, fresh: bool) -> str:
    """Asks, after offering to go on with an earlier draft; says on Ctrl-C how to come back."""
    try:
        if fresh:
            computer.first_look(session)
            _welcome(session)
        return session.run()
    except KeyboardInterrupt:
        if session.draft.values:
            views.say("Your answers are kept. To go on where you left: [strong]lora-wizard[/]")
        raise


def _welcome(session: Session) -> None:
    """The first page; where an earlier start left a draft, it offers to go on with it."""
    saved = drafts.load()
    usable = saved is not None and saved.draft.values and _usable(session, saved.draft)
    if saved is None or not usable:
        return
    import time

    ago = words.duration(max(time.time() - saved.saved_at, 1))
    at = (
        "the review"
        if saved.draft.at == REVIEW
        else f"“{steps.step_of(saved.draft.at).title}”"
        if saved.draft.at
        else "the start"
    )
    answer = session.ask(
        Page(
            place="Welcome back",
            title=f"You left at {at}, {ago} ago. Go on from there?",
            options=(Option("go on", "Go on"), Option("new", "Start anew", "the kept answers are dropped")),
            back="",
        )
    )
    if answer == "go on":
        session.draft = saved.draft
    else:
        drafts.discard()


def _usable(session: Session, draft: Draft) -> bool:
    """Whether a draft still fits the schema: it may have been kept by another version."""
    if draft.at and draft.at != REVIEW and draft.at not in steps.questions():
        return False
    try:
        session.bench.situation(draft.values)
    except (ValidationError, KeyError):
        return False
    return True


def _conclude(
    session: Session,
    start: bool,
    output: Path | None,
    *,
    dry_run: bool = False,
    as_json: bool = False,
    debug: bool = False,
) -> int:
    """Shows the review where nobody saw it, saves the answers and starts the training; returns the exit code."""
    situation = session.situation()
    path = output or answers_path(situation.config, Path.cwd())
    asked = session.asked
    if as_json:
        print(json.dumps(_document(situation, None if dry_run or situation.blocked else path), ensure_ascii=False))
    elif not asked:
        views.console().print(views.page(summary(situation), *told(situation.findings, limit=None)))
    if situation.problem:
        raise PlainError(situation.problem)
    if situation.blocked and (start or not asked):
        return _blocked(situation, as_json)
    if dry_run:
        return 0
    write_answers(situation.config, path, chosen=worth_writing(situation))
    drafts.discard()
    if not as_json:
        hint = "" if start else f"  Train with: [strong]lora-wizard train {views.escape(typed(path))}[/]"
        views.say(f"[good]✓[/] Answers saved in [strong]{views.escape(typed(path))}[/].{hint}")
    if not start:
        return 0
    from wizard.launch import train_config

    return train_config(situation.config, as_json=as_json, debug=debug)


def _blocked(situation: Situation, as_json: bool) -> int:
    """Says how a config that cannot start could be made to; exit code 3."""
    if not as_json:
        lines = ["This cannot start as it is."]
        for finding in situation.findings:
            if finding.severity == "blocks" and finding.fix:
                fix = " ".join(f"--set {name}={views.value(value)}" for name, value in finding.fix.items())
                lines.append(f"To settle {finding.rule}: {fix}")
        views.complain("\n".join(lines))
    return 3


def _document(situation: Situation, path: Path | None) -> dict[str, Any]:
    """The outcome as --json prints it."""
    return {
        "answers": None if path is None else str(path),
        "config": situation.config.model_dump(mode="json"),
        "plan": situation.plan.as_dict() if situation.plan else None,
        "findings": [asdict(finding) for finding in situation.findings],
        "problem": situation.problem or None,
    }


def worth_writing(situation: Situation) -> set[str]:
    """What the answers file names even at its default: what the path asks, and what differs from the recommendation."""
    from knowledge.parameters import recommended

    names = set(steps.questions())
    for name in settings.every_name():
        advice = recommended(name, situation.facts)
        if advice is not None and advice.value != value_of(situation.config, name):
            names.add(name)
    return names


def typed(path: Path) -> str:
    """A path as one would type it, relative where it lies below this folder."""
    try:
        return quoted(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return quoted(path)
