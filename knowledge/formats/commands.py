"""A command that trains, out of a script of any shell: its words, its options, and what it leaves open."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from knowledge.answers import PlainError
from knowledge.formats.values import typed
from knowledge.formats.vocabulary import facts_of

TRAINING = {
    "pretrained_model_name_or_path", "network_dim", "network_module", "learning_rate", "unet_lr", "train_data_dir",
    "dataset_config", "config_file", "output_dir", "max_train_epochs", "max_train_steps",
}  # fmt: skip
"""Options of which every command that trains has one, whatever its script is called."""
SCRIPTS = {"train_network.py": "sd15", "sdxl_train_network.py": "sdxl"}
ENDS = {"&&", "||", "|", ";", "&"}
COMMENT = re.compile(r"^\s*(#|rem\b|::|//).*$", re.IGNORECASE | re.MULTILINE)
SPACE = "\ue000"
"""Stands for a space in a variable's value, which stays one word."""
OPEN = re.compile(r"\$[\w{(@]|%\w+%|![A-Za-z_]\w*!|^@[A-Za-z_]\w*$")
"""How a shell writes what it fills in when it runs."""


@dataclass
class Command:
    """A command that trains: the script's name, its options, those of accelerate before it, and remarks on both."""

    script: str
    options: dict[str, Any]
    launcher: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def family(self) -> str | None:
        """The family that its script trains; None for a script that we do not know."""
        return SCRIPTS.get(self.script)


def training_command(text: str, path: Path) -> Command:
    """The first command of a script that trains. Raises PlainError when none does."""
    windows = path.suffix.lower() in (".bat", ".cmd", ".ps1")
    commands = [_command(words) for words in commands_of(text, windows)]
    training = [command for command in commands if _trains(command)]
    if not training:
        named = next((command.script for command in commands if command.script), "")
        what = f"its command ({named})" if named else "it"
        raise PlainError(f"{path} is no training config: {what} trains nothing that is known here.", 2)
    first = training[0]
    if len(training) > 1:
        first.remarks.append(f"The file trains {len(training)} times; the first of its commands is read.")
    return first


def _trains(command: Command) -> bool:
    known = facts_of("sd_scripts")
    meant = TRAINING if command.script and "train" not in command.script else {*known["options"], *known["unset"]}
    return bool(meant & command.options.keys())


def commands_of(text: str, windows: bool) -> list[list[str]]:
    """The words of every command of a script, with continued lines joined and its own variables filled in."""
    text = COMMENT.sub("", text.replace("\r\n", "\n"))
    joined = with_variables(re.sub(r"[\\^`][ \t]*\n\s*", " ", text)).replace("%~dp0", "")
    found: list[list[str]] = []
    for line in joined.splitlines():
        for words in _parts(_words(line, windows)):
            inner = [word for word in words if ".py" in word and " --" in word]  # bash -c "accelerate launch …"
            found += [part for word in inner for part in _parts(_words(word, windows))] or [words]
    with_options = [words for words in found if any(word.startswith("--") for word in words)]
    if any(_script_at(words) is not None for words in with_options):
        return [words for words in with_options if _script_at(words) is not None]
    # Options alone, one a line, as they are passed on in forums.
    return [[word for words in found for word in words]] if with_options else []


LOOSE = re.compile(r"""(?:[^\s"']|"[^"]*"|'[^']*'|["'])+""")
"""Words of a line whose quotes do not close."""


def _words(line: str, windows: bool) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    if windows or re.search(r"[A-Za-z]:\\|(^|[\s=\"'])\.{0,2}\\\w", line):
        lexer.escape = ""  # a Windows path is no row of escapes
    try:
        words = list(lexer)
    except ValueError:
        words = [re.sub("[\"']", "", word) for word in LOOSE.findall(line)]
    comment = next((place for place, word in enumerate(words) if word.startswith("#")), len(words))
    return [word.replace(SPACE, " ") for word in words[:comment]]


def _parts(words: list[str]) -> list[list[str]]:
    """The commands in one line: cd folder && accelerate launch …; without what comes after > log.txt."""
    parts: list[list[str]] = [[]]
    quiet = False
    for word in words:
        if word in ENDS or word.endswith(";"):
            parts[-1] += [word[:-1]] if word.endswith(";") and word[:-1] and not quiet else []
            parts.append([])
            quiet = False
        elif quiet or re.match(r"\d?>", word):
            quiet = True
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def _script_at(words: list[str]) -> int | None:
    return next((place for place, word in enumerate(words) if word.endswith(".py")), None)


def _command(words: list[str]) -> Command:
    place = _script_at(words)
    script = "" if place is None else Path(words[place].replace("\\", "/")).name
    before, after = ([], words) if place is None else (words[:place], words[place + 1 :])
    remarks: list[str] = []
    command = Command(script, options_of(after, remarks), options_of(before, []), remarks)
    left_open = [word for word in after if OPEN.search(word)]
    if left_open:
        what = ", ".join(dict.fromkeys(left_open))
        remarks.insert(0, f"What stands for {what} is decided when the script runs; see there.")
    return command


ASSIGNMENT = re.compile(
    r"""^[ \t]*(?:export[ \t]+|set[ \t]+)?(?P<quote>"?)\$?(?P<name>[A-Za-z_]\w*)[ \t]*=[ \t]*
        (?:"(?P<double>[^"\n]*)"|'(?P<single>[^'\n]*)'|(?P<bare>[\w./:\\+,-]+))?(?P=quote)[ \t]*(?:[#;].*)?$""",
    re.VERBOSE | re.MULTILINE,
)
IN_SET = re.compile(r'^[ \t]*set[ \t]+"?([A-Za-z_]\w*)=([^"\n]*?)"?[ \t]*$', re.IGNORECASE | re.MULTILINE)
"""An assignment of a .bat file, whose value may hold spaces without any quotes."""
LIST = re.compile(r"^[ \t]*\$?([A-Za-z_]\w*)[ \t]*=[ \t]*@?\(([^()]*--[^()]*)\)", re.MULTILINE)
"""A list of options: ARGS=( --a b ) or $args = @("--a", "b")."""


def with_variables(text: str) -> str:
    """The script with $NAME, ${NAME}, %NAME% and lists of options replaced by what the script itself assigns to them.

    A name that is assigned twice is left open, since which value holds depends on how the script runs.
    """
    found: dict[str, set[str]] = {}
    for match in ASSIGNMENT.finditer(text):
        found.setdefault(match["name"], set()).add(match["double"] or match["single"] or match["bare"] or "")
    for name, given in IN_SET.findall(text):
        found[name] = {*found.get(name, set()), given} - ({""} if given else set())
    values = {name: next(iter(given)) for name, given in found.items() if len(given) == 1}
    lists = {name: _one_line(options) for name, options in LIST.findall(text)}
    text = LIST.sub("", text)
    for name, options in lists.items():
        filled = options.replace("\\", "\\\\")
        text = re.sub(rf'"?\$\{{{name}\[[@*]\]\}}"?|@{name}\b|"?\${name}\b"?', filled, text)

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2] or match[3] or match[4]
        found = values.get(name, "$")
        return match[0] if "$" in found else found if "--" in found else found.replace(" ", SPACE)

    return re.sub(r"\$\{(\w+)\}|\$(\w+)|%(\w+)%|!([A-Za-z_]\w*)!", value, text)


def _one_line(options: str) -> str:
    return re.sub(r",[ \t]*(?=[\n\"'])|\n", " ", re.sub(r"(^|\s)#[^\n]*", "", options))


def options_of(words: list[str], remarks: list[str] | None = None) -> dict[str, Any]:
    """Options and their values from the words after the script; --a=b, switches, and lists of several words.

    `remarks` is told of what the options say twice, and of words that belong to none of them.
    """
    known = facts_of("sd_scripts")
    switches = {key for key, value in known["options"].items() if isinstance(value, bool)}
    switches |= {*facts_of("diffusers")["switches"]}
    options: dict[str, Any] = {}
    remarks = [] if remarks is None else remarks
    current: str | None = None
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            current = name.replace("-", "_")
            if current in options:
                remarks.append(f"--{name} stands twice; the last one counts.")
            options[current] = typed(value) if equals else True
            continue
        if current is None or current in switches:
            after = f"after --{current}, which takes no value" if current else "before the first option"
            if not OPEN.search(word):
                remarks.append(f'"{word}" stands {after}; sd-scripts stops at it.')
            continue
        value = typed(word)
        held = options[current]
        options[current] = value if held is True else [*held, value] if isinstance(held, list) else [held, value]
    return options
