"""The guides can be read, lead to each other and to entries, and name only commands that exist."""

import re

import click
import pytest

from knowledge.library import DATA, document, guides, sources
from knowledge.names import find
from knowledge.parameters import terms
from wizard.cli import COMMANDS, lora_wizard

GUIDES = list(guides().values())


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_a_guide_begins_with_its_title_and_summary(guide):
    assert guide.text.startswith(f"# {guide.title}\n\n{guide.summary[:20]}")
    assert len(guide.summary) < 300


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_a_guide_names_only_commands_and_entries_that_exist(guide):
    for command, *rest in (call.split() for call in re.findall(r"`lora-wizard ([^`]+)`", guide.text)):
        assert command in COMMANDS
        if command == "explain" and rest:
            assert rest[0] in guides() or find(rest[0])


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_a_guide_takes_its_numbers_from_the_entries(guide):
    (path,) = (DATA / "guides").glob(f"*-{guide.name}.md")
    without_placeholders = re.sub(
        r"\{[^}]*\}|^\d\. |SD 1\.5|GTX 16|[bf]p?f?\d\d", "", path.read_text("utf-8"), flags=re.M
    )
    assert not re.search(r"\d", without_placeholders)


def _commands():
    """Every command as it is typed, "tools resize" as well as "tools"."""
    for name in COMMANDS:
        command = lora_wizard.get_command(None, name)
        yield name
        if isinstance(command, click.Group):
            yield from (f"{name} {below}" for below in command.commands)


COMMAND_LINES = set(_commands())
TOLD = re.compile(r"`lora-wizard ((?:tools|dataset) [a-z]+|[a-z]+)")


@pytest.mark.parametrize("term", terms().values(), ids=lambda term: term.name)
def test_an_entry_names_only_commands_that_exist(term):
    assert set(TOLD.findall(f"{term.meaning} {term.explanation} {term.here}")) <= COMMAND_LINES


def test_what_a_command_can_do_is_told_where_a_reader_asks_for_it():
    """An entry that said "not in this version" of something that a command does would leave that command untold."""
    told = {call for term in terms().values() for call in TOLD.findall(f"{term.explanation} {term.here}")}
    told |= {call for guide in GUIDES for call in TOLD.findall(guide.text)}
    assert {line for line in COMMAND_LINES if " " in line} <= told


def test_the_guides_cover_what_a_beginner_asks():
    assert {"what-is-a-lora", "choosing-pictures", "captions-and-trigger-words", "when-to-stop"} <= set(guides())
    assert len(GUIDES) >= 7


def test_every_source_is_cited_somewhere_or_gone():
    from knowledge import parameters as module
    from knowledge.rules import rules

    cited = {source for rule in rules() for source in rule.sources}
    for name in module._fields():
        table = module._table(name)
        cited |= set(table.get("sources", ()))
        cited |= {source for choice in table.get("choices", {}).values() for source in choice.get("sources", ())}
    cited |= {source for _, _, table in module._term_tables() for source in table.get("sources", ())}
    cited |= {source for rows in document("assessment.toml").values() for row in rows for source in row["sources"]}
    cited |= set(document("prices.toml")["sources"])
    assert set(sources()) <= cited, set(sources()) - cited


def test_what_is_graded_measured_names_a_measurement_that_this_repository_keeps():
    from knowledge.parameters import parameters
    from knowledge.rules import rules

    root = DATA.parent.parent
    kept = {source.id for source in sources().values() if source.record}
    assert all((root / source.record).exists() for source in sources().values() if source.record)
    assert {source.id for source in sources().values() if source.title.startswith("Measured")} <= kept
    choices = [choice for parameter in parameters().values() for choice in parameter.choices.values()]
    for claim in [*parameters().values(), *choices, *terms().values(), *rules()]:
        if claim.evidence == "measured":
            assert set(claim.sources) & kept, claim
