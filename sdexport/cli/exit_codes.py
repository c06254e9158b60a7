"""The exit codes of every verb."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process tells its caller when it ends."""

    DONE = 0
    FAILED = 1
    """The verb ran and its answer is no: a bundle differs from PyTorch, an earlier run was faster,
    a measurement is incomplete, nothing can be generated on this machine."""
    USER_ERROR = 2
    """A value, file or library that the user can correct."""
    INTERRUPTED = 130
    """Ctrl-C: what a shell says of a program that was ended by SIGINT."""
    PIPE_CLOSED = 141
    """The reader of stdout left: what a shell says of a program that was ended by SIGPIPE."""


class NegativeAnswerError(Exception):
    """A verb ran to its end and its answer is no: exit code 1, and `message` as the error.

    Attributes:
        document: what `--json` prints in the place of an error's own document.
    """

    def __init__(self, message: str, document: object) -> None:
        super().__init__(message)
        self.document = document
