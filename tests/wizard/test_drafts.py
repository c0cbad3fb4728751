"""The draft that neither Ctrl-C nor a crash costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from wizard import drafts
from wizard.steps import Draft

pytestmark = pytest.mark.usefixtures("own_home")
DRAFT = Draft({"network.rank": 8, "dataset.trigger_word": "zörb"}, "network.rank", ("dataset.resolution",))


def test_a_draft_comes_back_as_it_was_kept():
    drafts.save(DRAFT)
    saved = drafts.load()
    assert saved is not None
    assert saved.draft == DRAFT


def test_there_is_no_draft_before_the_first_answer_and_after_it_was_used():
    assert drafts.load() is None
    drafts.save(DRAFT)
    drafts.discard()
    assert drafts.load() is None
    drafts.discard()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 1}', '{"schema_version": 99, "values": {}}'])
def test_a_file_that_is_no_draft_of_ours_is_no_draft(own_home: Path, content: str):
    own_home.mkdir()
    (own_home / "draft.json").write_text(content, encoding="utf-8")
    assert drafts.load() is None


def test_keeping_a_draft_leaves_nothing_half_written(own_home: Path):
    drafts.save(DRAFT)
    drafts.save(DRAFT.moved("review"))
    assert [path.name for path in own_home.iterdir()] == ["draft.json"]
