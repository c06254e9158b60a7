"""Writes docs/results.schema.json, the JSON Schema of results.json, from its types.

python scripts/results_schema.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sdexport.artifacts import documents
from sdexport.bench.results import Results

FILE = Path(__file__).resolve().parent.parent / "docs" / "results.schema.json"


def main() -> int:
    """Writes the file, or compares it with `--check`; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit code 1 if the file differs")
    check = parser.parse_args().check
    wanted = json.dumps(documents.schema(Results), indent=2, ensure_ascii=False) + "\n"
    if not check:
        FILE.write_text(wanted, encoding="utf-8")
        return 0
    if FILE.is_file() and FILE.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{FILE} differs from the types; run: make docs", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
