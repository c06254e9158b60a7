"""Writes docs/screens.md: what the command line shows, captured on terminals of this machine.

It compiles the example checkpoint, which takes minutes, so it is run by hand and is not part of
`make docs`. Paths and versions of this machine are left out.

    python scripts/screens_page.py [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "screens.md"
CHECKPOINT = ROOT / "examples" / "emoji" / "checkpoint"

NEW_FRAME = re.compile(r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)*")
"""What rich writes before it draws moving lines again."""
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

INTRODUCTION = """# Screens

<!-- Made by scripts/screens_page.py from real runs with the example checkpoint. -->

What the verbs show, on a terminal of 80 columns, of 120, and on a dumb one (`TERM=dumb`), which
cannot move its cursor.

- **The answer is the first line**; what explains it follows; the rest is under `--wide` (every
  column, a row a line, however long) or `--tensors`.
- **Nothing is cut and no word is broken.** Cells are folded between words. A word that is longer
  than the line (a path) is left whole, so that it can be copied.
- **`COLUMNS` is honoured**, on a terminal and in a pipe. A file or pipe without `COLUMNS` gets a
  row a line, whatever its length, so that `grep` and `awk` see whole rows. Scripts read `--json`.
- **Results go to stdout, progress and messages to stderr.** Lines that move are for terminals
  that can move their cursor. A dumb terminal, a file or a pipe gets a line for each stage of two
  seconds or more when it ends, and where nothing was said for ten seconds, then for thirty, a
  line that says what is going on.
- **Times that are left** follow from the steps that are done, and for a compilation from an
  estimate; where that is exceeded it is said.
- **Completion**: `sdexport --install-completion` completes verbs, options, samplers, targets, and
  the paths of bundles and checkpoints.
"""


def captured(folder: Path, columns: int, term: str, *command: str) -> str:
    """What a command writes on a terminal."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-m", "sdexport", *command],
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=its,
        cwd=folder,
        env=kept | {"TERM": term, "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT)},
    )
    os.close(its)
    written = b""
    while True:
        try:
            block = os.read(ours, 1 << 16)
        except OSError:
            break
        if not block:
            break
        written += block
    os.close(ours)
    process.wait()
    return written.decode().replace("\r\n", "\n")


def plain(text: str, folder: Path) -> str:
    """A screen without escapes, and without what is this machine's own."""
    text = ESCAPE.sub("", text).replace(str(folder), "~/work")
    text = re.sub(r"^(system +Linux \d+\.\d+)\S* ", r"\1 ", text, flags=re.M)
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def frames(written: str, folder: Path, wanted: int) -> list[str]:
    """Some of the frames of moving lines, evenly over those that say something new."""
    found: list[str] = []
    for piece in NEW_FRAME.split(written):
        # Lines that stay are written above the moving ones.
        text = plain(piece, folder)
        if text and re.match(r"^[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", text) and (not found or text != found[-1]):
            found.append(text)
    if len(found) <= wanted:
        return found
    return [found[round(place * (len(found) - 1) / (wanted - 1))] for place in range(wanted)]


def ending(written: str, folder: Path) -> str:
    """What stays on the screen: the lines that do not move."""
    text = plain(NEW_FRAME.sub("\n", written), folder)
    lines = [line for line in text.splitlines() if not re.match(r"^[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", line)]
    while lines and not lines[0]:
        lines.pop(0)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def block(text: str) -> str:
    return f"```text\n{text}\n```"


def section(folder: Path, title: str, *command: str) -> list[str]:
    """A screen at 80 columns; at 120 and on a dumb terminal where it is another there."""
    usual, wide, dumb = (
        ending(captured(folder, columns, term, *command), folder)
        for columns, term in ((80, "xterm-256color"), (120, "xterm-256color"), (80, "dumb"))
    )
    for text, columns in ((usual, 80), (wide, 120), (dumb, 80)):
        over = [line for line in text.splitlines() if len(line) > columns]
        assert not over or "--wide" in command, over
    parts = [f"## {title}", block(f"$ sdexport {' '.join(command)}\n{usual}")]
    same = []
    if still(wide) == still(usual):
        same.append("at 120 columns")
    else:
        parts += ["At 120 columns:", block(wide)]
    if still(dumb.replace("-", "─")) == still(usual.replace("-", "─")):
        rules = (
            ", with `-` for the rules" if dumb.replace("-", "─") != dumb and "─" in usual else ""
        )
        same.append(f"on a dumb terminal{rules}")
    else:
        parts += ["On a dumb terminal:", block(dumb)]
    return [*parts, f"The same {' and '.join(same)}."] if same else parts


def still(text: str) -> str:
    """A screen's words without what changes from one look to the next."""
    text = " ".join(re.sub(r"(─|-){2,}", "", text).split())
    for changing in (
        r"\d[\d.]* [GM]B (?=available|free)",
        r"(?<=taken )[\d.]+",
        r"(?<=[a-z:] )\d+ (s|min|h|days?)\b( \d+ s\b)?",
        r"(?<=[GM]B )\d+ (min|h|days?)\b",
    ):
        text = re.sub(changing, "…", text)
    return text


def moving(folder: Path, title: str, wanted: int, *command: str) -> list[str]:
    """Moving lines at 80 and 120 columns, what stays, and a dumb terminal's lines."""
    parts = [f"## {title}"]
    for number, columns in enumerate((80, 120)):
        written = captured(folder, columns, "xterm-256color", *command)
        parts.append(f"While it runs, at {columns} columns:")
        parts.append(block("\n\n".join(frames(written, folder, wanted if columns == 80 else 3))))
        if not number:
            parts.insert(1, block(f"$ sdexport {' '.join(map(quoted, command))}"))
            parts += ["What stays:", block(ending(written, folder))]
    return parts


def quoted(word: str) -> str:
    return f'"{word}"' if " " in word else word


def main() -> None:
    """Makes what the screens show, captures them, and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--keep", type=Path, help="work here, and use what is there already")
    kept = parser.parse_args().keep
    folder = kept.resolve() if kept else Path(tempfile.mkdtemp(prefix="screens-"))
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "checkpoint").exists():
        (folder / "checkpoint").symlink_to(CHECKPOINT)
    parts = [INTRODUCTION.strip()]
    parts += section(folder, "Help", "--help")
    parts += section(folder, "What works here", "doctor")
    parts += section(folder, "A checkpoint", "inspect", "checkpoint")
    compile_ = ("compile", "checkpoint", "bundles/emoji", "--batch", "1:1:8", "--guidance", "2.5")
    parts += section(folder, "What compiling would do", *compile_, "--dry-run")
    compiled = compile_[0], *compile_[1:], "--onnx", "onnx"
    written = captured(folder, 80, "xterm-256color", *compiled, "--force")
    parts += ["## Compiling", block(f"$ sdexport {' '.join(compile_)}")]
    parts += ["While it runs:", block("\n\n".join(frames(written, folder, 9)))]
    parts += ["What stays:", block(ending(written, folder))]
    dumb = captured(folder, 80, "dumb", *compile_, "--force")
    parts += ["On a dumb terminal:", block(plain(dumb, folder))]
    parts += section(folder, "Of a bundle that stands, what is right is kept", *compile_[:-1], "3",
                     "--dry-run")  # fmt: skip
    generate = ("generate", "bundles/emoji", "a red apple", "--seed", "7", "-o", "apple.png")
    parts += moving(folder, "Generating", 5, *generate, "--steps", "200")
    dumb = captured(folder, 80, "dumb", *generate, "--steps", "800")
    parts += ["On a dumb terminal, with `--steps 800`:", block(plain(dumb, folder))]
    rtx = ("build", "onnx", "bundles/emoji-rtx", "--target", "tensorrt-rtx", "--precision", "fp32")
    captured(folder, 80, "dumb", *rtx, "--compute-capability", "sm89")
    parts += section(folder, "A bundle", "inspect", "bundles/emoji")
    parts += section(folder, "Its tensors", "inspect", "bundles/emoji", "--tensors")
    parts += section(folder, "Bundles", "engines", "list", "bundles")
    parts += section(folder, "Removing bundles", "engines", "prune", "bundles", "--cannot-run")
    parts += section(folder, "Samplers", "samplers", "--steps", "20")
    parts += ["## Mistakes"]
    for command in (
        ("generat", "bundles/emoji", "a fox"),
        ("generate", "bundles/emoji", "a fox", "--sampler", "dpm++ 2m karas"),
        ("generate", "bundles/emoji", "a fox", "--stepz", "20"),
        ("compile", "checkpoint", "bundles/other", "--target", "openvino"),
        ("generate", "bundles/emoji", "a fox", "--no-clobber", "-o", "apple.png"),
        ("generate", "bundles/emoji", "a fox", "-o", "-"),
    ):
        shown = " ".join(map(quoted, command))
        said = ending(captured(folder, 80, "xterm-256color", *command), folder)
        parts.append(block(f"$ sdexport {shown}\n{said}"))
    text = "\n\n".join(parts) + "\n"
    assert str(Path.home()) not in text.replace("~/work", "")
    PAGE.write_text(text, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written; {folder} may be removed")


if __name__ == "__main__":
    main()
