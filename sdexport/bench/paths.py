"""Texts without this machine's folders, which are nobody's business."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sdexport.bench.systems import PACKAGE


def without_paths(text: str) -> str:
    """`text` with this machine's folders shortened to what they are."""
    places = {str(PACKAGE.parent): ".", sys.prefix: "PREFIX", sys.base_prefix: "PREFIX"}
    # A current folder may have been removed, a user may have no home, a system no room for more.
    for find, name in ((Path.cwd, "."), (Path.home, "~"), (tempfile.gettempdir, "TEMP")):
        with suppress(OSError, RuntimeError):
            places[str(find())] = name
    for place, shown in sorted(places.items(), key=lambda pair: -len(pair[0])):
        if len(place) > 1:
            text = text.replace(place, shown)
    return text


def shown_command(arguments: Sequence[str]) -> str:
    """The command line with paths cut to their last part."""

    def shown(word: str) -> str:
        option, equals, value = word.partition("=")
        if word.startswith("-") and equals:
            return f"{option}={shown(value)}"
        return Path(word).name if Path(word).is_absolute() or ".." in Path(word).parts else word

    return shlex.join(map(shown, arguments))
