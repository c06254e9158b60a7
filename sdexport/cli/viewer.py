"""Opening an image with the system's viewer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from sdexport.cli.streams import is_terminal


def why_no_viewer() -> str:
    """Why no viewer is opened here; empty where one can be."""
    if os.environ.get("CI"):
        return "CI is set"
    if not is_terminal(sys.stderr):
        return "nobody watches: stderr is not a terminal, or a dumb one"
    if sys.platform in ("darwin", "win32"):
        return ""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display: neither DISPLAY nor WAYLAND_DISPLAY is set"
    return "" if shutil.which("xdg-open") else "xdg-open is not installed"


def open_image(file: Path) -> str:
    """Opens `file` with the system's viewer and does not wait for it.

    Returns:
        Why it was not opened; empty where it was.
    """
    why = why_no_viewer()
    if why:
        return why
    # A path that begins with a dash would be read as an option.
    path = str(file.absolute())
    try:
        if sys.platform == "win32":
            os.startfile(path)
        else:
            program = "open" if sys.platform == "darwin" else "xdg-open"
            subprocess.Popen(
                [program, path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
    except OSError as error:
        return f"the viewer did not start: {error.strerror or error}"
    return ""
