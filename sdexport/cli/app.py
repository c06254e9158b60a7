"""The application: its verbs in the order of the flow, and the page that `--help` shows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.core

from sdexport import __version__
from sdexport.cli.bench import bench
from sdexport.cli.build import build
from sdexport.cli.compile import compile
from sdexport.cli.doctor import doctor
from sdexport.cli.engines import engines
from sdexport.cli.export import export
from sdexport.cli.failures import exit_code_of
from sdexport.cli.generate import generate
from sdexport.cli.inspect import inspect
from sdexport.cli.samplers import samplers
from sdexport.cli.upgrade import upgrade
from sdexport.cli.verify import verify

FLOW: tuple[tuple[str, tuple[Any, ...]], ...] = (
    (
        "Compile: a checkpoint becomes a bundle of engines",
        (compile, export, build, verify, upgrade),
    ),
    ("Generate: a bundle generates images", (generate, samplers)),
    ("Look: what is there, what it costs, how fast it is", (inspect, doctor, engines, bench)),
)
"""The verbs as `sdexport --help` groups them: functions, and Typer applications of several."""


class Flow(typer.core.TyperGroup):
    """The group of all verbs, whose help shows them in the order of `FLOW`, an example each."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes a section for each stage of the flow."""
        width = max(len(name) for name in self.commands)
        for title, verbs in FLOW:
            formatter.write_paragraph()
            formatter.write(f"{title}\n")
            for verb in verbs:
                name = _name_of(verb)
                command = self.commands[name]
                formatter.write(f"  {name:{width}}  {command.get_short_help_str(66)}\n")
                formatter.write(f"  {'':{width}}    {_example(command.help or '')}\n")


def _name_of(verb: Any) -> str:
    return str(verb.info.name if isinstance(verb, typer.Typer) else verb.__name__)


def _example(help_text: str) -> str:
    """The first example of a verb's help."""
    lines = help_text.partition("Example:\n")[2].splitlines()
    return lines[0].strip() if lines else ""


app = typer.Typer(
    name="sdexport",
    cls=Flow,
    # Plain help reads the same in every terminal, log file and page of documentation.
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sdexport {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def sdexport(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Print the version and end."
        ),
    ] = False,
) -> None:
    """Stable Diffusion checkpoints as fast engines, and a lean runtime that generates with them.

    A checkpoint is compiled once into a bundle: a folder of engines for one target, checked
    against PyTorch. Images are generated from the bundle, without PyTorch.

    \b
    Example:
      sdexport compile stable-diffusion-v1-5/stable-diffusion-v1-5 sd15
      sdexport generate sd15 "a red apple on a table" --seed 7 -o apple.png

    Results go to stdout, progress and errors to stderr. Screens are laid out for the terminal's
    columns, or for COLUMNS where that is set. What goes to a file or pipe without COLUMNS has a row
    a line, whatever its length. Scripts read --json.

    Exit codes: 0 done; 1 a bundle differs from PyTorch or became slower, or nothing can be
    generated on this machine; 2 something to correct: a value, a file, a library that is missing;
    130 interrupted.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


for _, _verbs in FLOW:
    for _verb in _verbs:
        if isinstance(_verb, typer.Typer):
            app.add_typer(_verb)
        else:
            app.command()(_verb)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        arguments: without the program's name; None takes the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets an escape, not an exception.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return exit_code_of(lambda: app(args=given, prog_name="sdexport", standalone_mode=False), given)
