"""How a verb fails: the one path from an exception to an exit code and a line on stderr."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence

import typer

from sdexport.cli import terminal
from sdexport.cli.exit_codes import ExitCode, NegativeAnswerError
from sdexport.errors import SdexportError

SYSTEM = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC),
    *(errno.EDQUOT, errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETXTBSY),
)
"""What the system says of a file that no program's mistake is the reason of. A missing file or a
folder in its place may be one, and keeps its traceback."""

# The base of all errors that Typer reports about a command line. It has changed its module
# between Typer's versions, its place in the family never.
_Misuse: type[Exception] = typer.BadParameter.__mro__[2]


def exit_code_of(verb: Callable[[], object], arguments: Sequence[str]) -> int:
    """Runs `verb`, says on stderr how it failed if it did, and returns the exit code.

    A bug (anything that is not the user's to correct) is raised and keeps its traceback.

    Args:
        verb: runs the command line; returns an exit code or None.
        arguments: of the command line; with `--json` a failure is a document on stdout as well.
    """
    try:
        code = verb()
        if sys.stdout is not None:
            sys.stdout.flush()
    except NegativeAnswerError as answer:
        terminal.say_error(str(answer))
        if _wants_json(arguments):
            terminal.print_json(answer.document)
        return ExitCode.FAILED
    except SdexportError as error:
        return _user_error(arguments, error, str(error))
    except _Misuse as error:
        return _user_error(arguments, error, _explain(error))
    except (KeyboardInterrupt, typer.Abort):
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        _leave_pipe()
        return ExitCode.PIPE_CLOSED
    except OSError as error:
        if error.filename is not None and error.errno in SYSTEM:
            where = os.fsdecode(error.filename)
            message = f"cannot use {where}: {error.strerror}; see to that path"
            return _user_error(arguments, error, message)
        # A file's error has its name; without one it is stdout that cannot take more.
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        _leave_pipe()
        terminal.say_error(f"cannot write to stdout: {error.strerror}; free some space")
        return ExitCode.USER_ERROR
    except SystemExit as end:
        # Typer ends a verb whose reader left in this way, and says nothing.
        _leave_pipe()
        return ExitCode.PIPE_CLOSED if end.code == 1 else int(end.code or 0)
    if code == ExitCode.INTERRUPTED:
        terminal.say("interrupted")
    return int(code) if isinstance(code, int) else ExitCode.DONE


def _user_error(arguments: Sequence[str], error: Exception, message: str) -> ExitCode:
    terminal.say_error(message)
    if _wants_json(arguments):
        terminal.print_json({"error": {"kind": type(error).__name__, "message": message}})
    return ExitCode.USER_ERROR


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether `--json` is among the options; what follows `--` is none."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
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
    from sdexport.pipeline.option_names import COMMAND_LINE, SYNONYMS

    name = given.strip("-").replace("-", "_").lower()
    name = SYNONYMS.get(name, name)
    ours = COMMAND_LINE.get(name, name)
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
