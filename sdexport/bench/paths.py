"""Removes this machine's folders from texts that results hold."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sdexport.bench.systems import PACKAGE


def without_paths(text: str) -> str:
    """`text` with this machine's folders replaced by `.`, `~`, `PREFIX` and `TEMP`."""
    folders = {str(PACKAGE.parent): ".", sys.prefix: "PREFIX", sys.base_prefix: "PREFIX"}
    # The working directory may have been removed, and a user may have no home.
    for find, name in ((Path.cwd, "."), (Path.home, "~"), (tempfile.gettempdir, "TEMP")):
        with suppress(OSError, RuntimeError):
            folders[str(find())] = name
    for folder, shown in sorted(folders.items(), key=lambda pair: -len(pair[0])):
        if len(folder) > 1:
            text = text.replace(folder, shown)
    return text


def shown_command(arguments: Sequence[str]) -> str:
    """The command line with absolute paths, and paths with `..`, cut to their last part."""

    def shown(word: str) -> str:
        option, equals, value = word.partition("=")
        if word.startswith("-") and equals:
            return f"{option}={shown(value)}"
        return Path(word).name if Path(word).is_absolute() or ".." in Path(word).parts else word

    return shlex.join(map(shown, arguments))
