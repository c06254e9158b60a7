"""Writes docs/cli.md from the command line itself; `--check` fails where the two differ.

The page is made of the commands' own texts, not of their printed help, so it does not depend on
the terminal, the environment or the version of the library that prints it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from sdexport.cli import app

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
MADE = "<!-- Made by scripts/cli_docs.py from the command line. Change the texts there. -->"
EXAMPLE = "\b\n"
"""Where a paragraph of help begins that is printed as it is."""


def page() -> str:
    """The whole page as Markdown."""
    # Any: the library's classes for commands and parameters have moved between its versions.
    group: Any = typer.main.get_command(app)
    parts = ["# The command line", MADE, *_text(group.help)]
    parts += ["Options of `sdexport` itself:", _table(group.params)]
    for name, command in _commands(group, ""):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        shown = "".join(f" {_argument(argument)}" for argument in arguments)
        parts += [f"## sdexport {name}", f"```\nsdexport {name}{shown} [OPTIONS]\n```"]
        parts += [*_text(command.help), _table(command.params)]
    return "\n\n".join(parts) + "\n"


def _commands(group: Any, before: str) -> Iterator[tuple[str, Any]]:
    """Every verb of a group, those of its groups by both names."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def _argument(argument: Any) -> str:
    name = f"{argument.metavar}{'...' if argument.nargs == -1 else ''}"
    return name if argument.required else f"[{name}]"


def _text(help_text: str) -> list[str]:
    """Paragraphs of a help text; examples become blocks of code."""
    blocks = []
    for paragraph in help_text.strip().split("\n\n"):
        if paragraph.startswith(EXAMPLE):
            title, *lines = paragraph.removeprefix(EXAMPLE).splitlines()
            code = "\n".join(line.strip() for line in lines)
            blocks += [title, f"```sh\n{code}\n```"]
        else:
            blocks.append(_escaped(" ".join(paragraph.split())))
    return blocks


def _table(parameters: list[Any]) -> str:
    rows = ["| | meaning | default |", "|---|---|---|"]
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            name = _argument(parameter)
        else:
            # A flag has no value; its metavar, if any, is the library's own.
            value = "" if parameter.is_flag else f" {parameter.metavar}"
            name = ", ".join(parameter.opts) + value
        cell = name.replace("|", "\\|")
        rows.append(f"| `{cell}` | {_escaped(parameter.help or '')} | {_default(parameter)} |")
    return "\n".join(rows)


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return _escaped(parameter.show_default)
    if parameter.param_type_name == "option" and parameter.is_flag:
        return "off"
    return "" if parameter.default is None else f"`{parameter.default}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def main() -> int:
    """Writes the page, or compares it with `--check`; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare only; exit code 1 on drift")
    check = parser.parse_args().check
    wanted = page()
    if check:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == wanted:
            return 0
        print(f"{PAGE} differs from the command line; run: make docs", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
