"""The command line: names the commands and loads only the one that was asked for."""

from __future__ import annotations

import gc
import json
import sys
from importlib import import_module

import click

COMMANDS = {
    "new": "wizard.new:new",
    "demo": "wizard.demo:demo",
    "lab": "wizard.lab:lab",
    "train": "wizard.launch:train",
    "resume": "wizard.launch:resume",
    "join": "wizard.join:join",
    "watch": "wizard.runs:watch",
    "save": "wizard.runs:save",
    "stop": "wizard.runs:stop",
    "runs": "wizard.runs:runs",
    "calc": "wizard.calc:calc",
    "check": "wizard.check:check",
    "explain": "wizard.explain:explain",
    "dataset": "wizard.dataset:dataset",
    "download": "wizard.download:download",
    "import": "wizard.exchange:import_",
    "export": "wizard.exchange:export",
    "tools": "wizard.tools:tools",
    "doctor": "wizard.doctor:doctor",
}
"""Where each command lives; importing all of them to show one would make every start slow."""

GROUPS = {
    "Train": {
        "new": "The guided path: pictures, base model, settings, review, training.",
        "demo": "See it all work in three minutes on the built-in model.",
        "train": "Train from a saved answers file.",
        "resume": "Go on with a run that was stopped.",
        "join": "Train along on another computer, in a run that several share.",
        "watch": "Follow a run from another terminal.",
        "save": "Ask a run to save its LoRA as it is now, and go on.",
        "stop": "Ask a run to save and end.",
        "runs": "List the runs of this folder.",
    },
    "Prepare": {
        "dataset": "Pictures and captions: import, scrape, inspect, tag, edit.",
        "download": "A base model or a VAE from Hugging Face or Civitai.",
        "import": "Another trainer's config, or the recipe inside a LoRA, as answers of ours.",
        "export": "Answers as another trainer's config.",
    },
    "Finish": {
        "tools": "Finished files and runs: inspect, resize, convert, merge, extract, metadata, publish, backup, clean.",
    },
    "Understand": {
        "calc": "Steps, time, memory and file size before you start.",
        "check": "Read an answers file and say what is wrong or risky in it.",
        "explain": "Any setting, choice or word, under any name it has anywhere.",
        "lab": "Try a setting too low, right and too high on the built-in model.",
        "doctor": "What this computer can train.",
    },
}


class Commands(click.Group):
    """A group whose commands are imported when they are called, each with a --debug of its own."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name].split(":")
        command: click.Command = getattr(import_module(module), attribute)
        if not gc.isenabled():  # everything is loaded, and none of it is ever thrown away
            gc.freeze()
            gc.enable()
        for each in [command, *command.commands.values()] if isinstance(command, click.Group) else [command]:
            if not any(parameter.name == "debug" for parameter in each.params):
                each.params.append(
                    click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error.")
                )
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if arguments and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
            from knowledge.answers import did_you_mean

            context.fail(f'There is no command "{arguments[0]}".{did_you_mean(arguments[0], COMMANDS)}')
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Without a command it starts the guided path. Each command explains itself: lora-wizard calc --help",
)
@click.version_option(package_name="lora-wizard", prog_name="lora-wizard")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@click.pass_context
def lora_wizard(context: click.Context) -> int | None:
    """Train your first LoRA, step by step, with every setting explained and its cost shown before you start."""
    if context.invoked_subcommand is not None:
        return None
    command = lora_wizard.get_command(context, "new")
    assert command is not None
    code: int | None = context.invoke(command)
    return code


def main(arguments: list[str] | None = None) -> None:
    """Runs the program and exits: 0 done, 1 failed, 2 wrong use, 3 blocked by findings, 130 interrupted."""
    if arguments is None:
        gc.disable()  # a seventh of every start went into looking for garbage among what was being loaded
    from knowledge.answers import PlainError

    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        code = lora_wizard.main(words, prog_name="lora-wizard", standalone_mode=False)
    except click.exceptions.Exit as end:
        code = end.exit_code
    except click.ClickException as error:
        fail(_usage(error), error.exit_code, words)
    except PlainError as error:
        if debug:
            raise
        fail(str(error), error.exit_code, words)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has left; as `head` expects
        sys.stdout = None
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        fail(
            f"Something went wrong inside lora-wizard: {type(error).__name__}: {error}\n"
            "This is a fault of the program. Run it again with --debug and report what it prints.",
            1,
            words,
        )
    sys.exit(code if isinstance(code, int) else 0)


def fail(message: str, exit_code: int, words: list[str]) -> None:
    """Says on stderr what was wrong, as a JSON document on stdout when --json was asked for, and exits."""
    if "--json" in words:
        print(json.dumps({"error": message, "exit_code": exit_code}, ensure_ascii=False))
    else:
        from wizard import views

        views.complain(message)
    sys.exit(exit_code)


def _usage(error: click.ClickException) -> str:
    command = getattr(getattr(error, "ctx", None), "command_path", "")
    return f"{error.format_message()}\nHelp: {command} --help" if command else error.format_message()


if __name__ == "__main__":
    main()
