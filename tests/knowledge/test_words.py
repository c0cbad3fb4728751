"""What is counted stands in the singular where there is one, in every sentence of the program."""

import ast
import re
from pathlib import Path

import pytest

from knowledge.expressions import evaluate, fill, in_words, names_in, placeholders
from knowledge.facts import facts
from knowledge.parameters import lookup_for, parameters
from knowledge.rules import example, rules
from knowledge.words import agreeing, count

ROOT = Path(__file__).parents[2]
SOURCES = [path for floor in ("knowledge", "calculator", "engine", "wizard") for path in (ROOT / floor).rglob("*.py")]
NOUNS = frozenset(
    {
        "batches", "bytes", "captions", "epochs", "files", "folders", "images", "layers", "pictures", "prompts",
        "samples", "seconds", "shapes", "steps", "tags", "tensors", "tokens", "updates", "views", "weights",
        "words",
    }
)  # fmt: skip
NEVER_ONE = (
    "WINDOW", "window", "FIRST_STEPS", "TOKENS_READ", "STEPS", "{steps}", "limits.", "len(twins)", "{total}", "{every}",
    "{prompt.steps}", "len(wanted)", "{size}", "{length}", "size_bytes", "result.shape", "len(archive.infolist())",
    "len(offer.paths)", "limits[", "len(single)",
)  # fmt: skip
"""Counts that stand before a plural: constants, what was found to be several, and what is far beyond one."""


def test_count_and_agreement():
    assert [count(n, "picture") for n in (0, 1, 2, 1200)] == ["0 pictures", "1 picture", "2 pictures", "1,200 pictures"]
    assert count(1, "entry", "entries") == "1 entry"
    assert (agreeing(1, "is", "are"), agreeing(2, "is", "are")) == ("is", "are")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 seconds"), (1, "1 second"), (59, "59 seconds"), (60, "1 minute"), (89, "1 minute"), (90, "2 minutes"),
     (5400, "2 hours"), (172_800, "2 days")],
)  # fmt: skip
def test_a_time_in_prose_agrees_with_its_number(seconds, said):
    assert in_words(seconds, "time") == said


def test_a_placeholder_counts_and_agrees():
    known = {"n": 1, "m": 3}
    text = "{n:count picture} {n:agree has/have}; {m:count batch/batches} {m:agree has/have}"
    assert fill(text, known.__getitem__) == "1 picture has; 3 batches have"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.id)
def test_no_rule_says_one_of_many(rule):
    """Every fact that its message names is made 1, as long as the rule still fires."""
    config, others = example(rule.fires)
    known = dict(facts(config) | others)
    read = {name for placeholder in placeholders(rule.message) for name in names_in(placeholder)}
    for name in sorted(read & {fact for fact, value in known.items() if type(value) in (int, float)}):
        if name in parameters() and (parameters()[name].minimum or 0) > 1:
            continue
        one = known | {name: 1}
        if evaluate(rule.when, lookup_for(None, one)):
            message = fill(rule.message, lookup_for(None, one))
            wrong = re.findall(rf"(?<![\d.,])1 (?:{'|'.join(sorted(NOUNS | {'times', 'restarts'}))})\b", message)
            assert not wrong, (name, message)


def test_no_sentence_in_the_source_puts_a_number_before_a_plural():
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.JoinedStr):
                continue
            for value, behind in zip(node.values, node.values[1:], strict=False):
                if not (isinstance(value, ast.FormattedValue) and isinstance(behind, ast.Constant)):
                    continue
                said = re.match(r" (?!with |of |for |in )(?:[a-z]+ )?([a-z]+)\b", behind.value)
                first = re.match(r" ([a-z]+)\b", behind.value)
                shown = f"{{{ast.unparse(value.value)}}}"
                plural = {match[1] for match in (said, first) if match} & NOUNS
                if plural and not any(known in shown for known in NEVER_ONE) and _is_count(value):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {shown}{behind.value[:30]}")
    assert not found, "use knowledge.words.count:\n" + "\n".join(found)


def _is_count(value: ast.FormattedValue) -> bool:
    """Whether what is shown is a number rather than a word: written with separators, or as len() or a sum gives it."""
    shown = ast.unparse(value.value)
    separated = value.format_spec is not None and "," in ast.unparse(value.format_spec)
    names = "images steps captions files layers seconds count views missing above cores tokens total_steps number"
    counted = re.search(rf"\blen\(|\bsum\(|(^|[._])({names.replace(' ', '|')})$", shown)
    return separated or bool(counted)
