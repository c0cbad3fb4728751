"""`explain`: any name leads to its entry, the index is complete, and the handbook is one file with everything in it."""

import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from knowledge.answers import PlainError
from knowledge.lessons import lessons, record
from knowledge.parameters import parameters, terms
from wizard import handbook
from wizard.explain import explain


def run(*arguments):
    result = CliRunner().invoke(explain, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


@pytest.mark.parametrize(
    "name", ["network.rank", "network_dim", "Network Rank (Dimension)", "net_dim", "--network-dim"]
)
def test_every_name_of_the_rank_leads_to_it(name):
    assert json.loads(run("--json", "--", name))["name"] == "network.rank"


def test_words_need_no_quotation_marks():
    assert "network.rank" in run("Network", "Rank", "(Dimension)")


def test_a_typo_is_forgiven_with_a_suggestion():
    with pytest.raises(PlainError, match=r'Did you mean "learning rate"'):
        run("lerning_rate")


@pytest.mark.parametrize("name", list(parameters()))
def test_every_parameter_has_a_page_and_a_document(name):
    page = run(name)
    assert parameters()[name].title in page
    assert "{" not in page
    assert json.loads(run(name, "--json"))["kind"] == "parameter"


def test_a_page_says_what_the_values_cost():
    page = run("network.rank")
    assert "What it costs" in page
    assert "MB" in page
    costs = json.loads(run("network.rank", "--json"))["costs"]
    assert [cost["file_bytes"] for cost in costs] == sorted(cost["file_bytes"] for cost in costs)


def test_the_index_names_every_parameter():
    index = run("--json")
    assert {line["name"] for line in json.loads(index)["parameters"]} == set(parameters())
    assert "learning_rate" in run()
    assert "How much the network changes" in " ".join(run("--section", "optimizer").split())
    essential = json.loads(run("--level", "essential", "--json"))["parameters"]
    assert {line["level"] for line in essential} == {"essential"}


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.ids, self.links, self.addresses, self.open, self.pictures = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        if "id" in known:
            self.ids.append(known["id"])
        if tag == "a":
            self.links.append(known.get("href", ""))
        if known.get("src", "").startswith("data:image/png;base64,"):
            self.pictures.append(known)
        elif "src" in known or (tag == "link" and "href" in known):
            self.addresses.append(known)
        if tag not in {"meta", "input", "br", "img", "hr"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_handbook_is_one_sound_file_with_every_entry(tmp_path):
    path = tmp_path / "deep" / "handbook.html"
    run("--all", "--output", str(path))
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert not page.open
    assert not page.addresses, "it must need nothing from elsewhere"
    assert len(page.ids) == len(set(page.ids)), sorted(i for i in page.ids if page.ids.count(i) > 1)
    assert set(parameters()) | set(terms()) <= set(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not re.search(r"\{[a-z_.]+\}", text.partition("</style>")[2].partition("<script>")[0])


def test_the_handbook_shows_every_lesson_with_its_picture_and_figures():
    text = handbook.html()
    page = Page()
    page.feed(text)
    assert len(page.pictures) == len(lessons())
    assert all(picture["alt"] for picture in page.pictures)
    assert {f"lab-{name}" for name in lessons()} <= set(page.ids)
    for lesson in lessons().values():
        assert html.escape(lesson.said(record(lesson.name).mean()), quote=False)[:60] in text
    assert len(text) < 3_000_000


def test_a_page_says_what_was_measured_on_the_pocket_model():
    page = " ".join(run("network.rank").split())
    lesson = lessons()["rank"]
    assert "lab rank" in page
    assert f"{record('rank').mean()['small']['creature_loss']:.3f}" in page
    assert lesson.said(record("rank").mean())[:40] in page


def test_the_handbook_exists_in_markdown_too():
    text = handbook.markdown()
    assert all(f"`{name}`" in text for name in parameters())
    assert text.startswith("# ")


def test_explain_imports_nothing_that_takes_time_to_load():
    slow = {"torch", "numpy", "PIL", "yaml", "tomlkit", "questionary", "prompt_toolkit", "asyncio", "psutil"}
    code = (
        "import sys; from wizard.cli import main\n"
        "try: main(['explain', 'network.algorithm'])\n"
        f"finally: print(sorted({slow!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, encoding="utf-8")
    assert done.stderr.strip() == "[]"
    assert "What it costs" in done.stdout
