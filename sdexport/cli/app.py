"""The application: its verbs, and how it ends.

Exit codes: 0 done; 1 a comparison with PyTorch or an earlier run failed, or nothing can be
generated on this machine; 2 a value, file or library that the user can do something about; 130
interrupted. Anything else that goes wrong is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from sdexport import __version__
from sdexport.cli import terminal
from sdexport.cli.bench import bench
from sdexport.cli.build import build
from sdexport.cli.compile import compile
from sdexport.cli.doctor import doctor
from sdexport.cli.engines import engines
from sdexport.cli.export import export
from sdexport.cli.generate import generate
from sdexport.cli.inspect import inspect
from sdexport.cli.samplers import samplers
from sdexport.cli.verify import verify
from sdexport.errors import SdexportError

USER_ERROR = 2
INTERRUPTED = 130
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
SYSTEM = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC),
    *(errno.EDQUOT, errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETXTBSY),
)
"""What the system says of a file that no program's mistake is the reason of. A missing file or a
folder in its place may be one, and keeps its traceback."""
PIPE_CLOSED = 141
"""What a shell says of a program that was ended by SIGPIPE, as most are when their reader left."""

# The base of all errors that Typer reports about a command line. It has changed its module
# between Typer's versions, its place in the family never.
_Misuse: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="sdexport",
    add_completion=False,
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

    Exit codes: 0 done; 1 a bundle differs from PyTorch or became slower, or nothing can be
    generated on this machine; 2 something to correct: a value, a file, a library that is missing;
    130 interrupted.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


for _verb in (compile, export, build, generate, verify, inspect, samplers, doctor):
    app.command()(_verb)
app.add_typer(engines)
app.add_typer(bench)


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
    try:
        code = app(args=given, prog_name="sdexport", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except SdexportError as error:
        return _fail(given, error, str(error))
    except _Misuse as error:
        return _fail(given, error, _explain(error))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        _leave_pipe()
        return PIPE_CLOSED
    except OSError as error:
        if error.filename is not None and error.errno in SYSTEM:
            where = os.fsdecode(error.filename)
            return _fail(given, error, f"cannot use {where}: {error.strerror}; see to that path")
        # A file's error has its name; without one it is stdout that cannot take more.
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        _leave_pipe()
        terminal.say(f"error: cannot write to stdout: {error.strerror}; free some space")
        return USER_ERROR
    except SystemExit as end:
        # Typer ends a verb whose reader left in this way, and says nothing.
        _leave_pipe()
        return PIPE_CLOSED if end.code == 1 else int(end.code or 0)
    if code == INTERRUPTED:
        terminal.say("interrupted")
    return code if isinstance(code, int) else 0


def _fail(given: Sequence[str], error: Exception, message: str) -> int:
    # One line, whatever is in a path: its line's end and other controls are shown as escapes.
    shown = CONTROLS.sub(lambda found: repr(found[0])[1:-1], message)
    terminal.say(f"error: {shown}")
    if _wants_json(given):
        terminal.print_json({"error": {"kind": type(error).__name__, "message": message}})
    return USER_ERROR


def _wants_json(given: Sequence[str]) -> bool:
    """Whether `--json` is among the options; what follows `--` is none."""
    options = given[: given.index("--")] if "--" in given else given
    return "--json" in options


def _explain(error: Exception) -> str:
    """One line: what is wrong with the command line, and where its help is."""
    message = " ".join(str(getattr(error, "format_message", error.__str__)()).split())
    message = _meant(error) or message
    value = _refused_value(error)
    if value is not None and value not in message:
        message = f"{message.rstrip('.')}, not {value}"
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "sdexport"
    return f"{message.rstrip('.')}; see: {path} --help"


def _meant(error: Exception) -> str | None:
    """What to say of an unknown option that another library or interface calls so."""
    given = getattr(error, "option_name", None)
    # By its name: the class has changed its module between Typer's versions.
    if type(error).__name__ != "NoSuchOption" or given is None:
        return None
    from sdexport.pipeline.request import NAMES

    ours = NAMES.get(given.strip("-").replace("-", "_").lower())
    if ours is None:
        return None
    option = f"--{ours}".replace("_", "-")
    context = getattr(error, "ctx", None)
    known = [name for one in context.command.params for name in one.opts] if context else []
    shape = " WIDTHxHEIGHT" if ours == "size" else ""
    return (
        f"No such option: {given}; it is called {option}{shape} here" if option in known else None
    )


def _refused_value(error: Exception) -> str | None:
    """The value that could not be read: Typer's message leaves it to the error behind it."""
    reasons = getattr(error.__cause__, "errors", None)
    found = reasons() if callable(reasons) else []
    return repr(found[0]["input"]) if found and "input" in found[0] else None


def _leave_pipe() -> None:
    """Lets the interpreter end without a word about output that nobody reads."""
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, sys.stdout.fileno())
        os.close(silence)
    except (OSError, ValueError, AttributeError):
        # No real file behind stdout (a test's, or none): nothing will complain.
        return
