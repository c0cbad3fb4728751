"""The guides can be read, lead to each other and to entries, and name only commands that exist."""

import re

import pytest

from knowledge.library import DATA, document, guides, sources
from knowledge.parameters import find, terms
from wizard.cli import COMMANDS

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


@pytest.mark.parametrize("term", terms().values(), ids=lambda term: term.name)
def test_an_entry_names_only_commands_that_exist(term):
    for call in re.findall(r"`lora-wizard ([a-z]+)", f"{term.meaning} {term.explanation} {term.here}"):
        assert call in COMMANDS


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
