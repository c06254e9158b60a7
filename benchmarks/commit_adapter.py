"""The adapter of a bundle that is run by the sources of another commit, for `against_commit.py`."""

from __future__ import annotations

import sys
from typing import Any


def load(scenario: dict[str, Any], options: dict[str, Any]) -> Any:
    """The bundle `options["bundle"]`, loaded by the package in the folder `options["sources"]`."""
    sys.path.insert(0, options["sources"])
    import sdexport
    from sdexport.bench import bundle_adapter

    if not str(sdexport.__file__).startswith(options["sources"]):
        raise ImportError(f"{sdexport.__file__} is not of {options['sources']}")
    return bundle_adapter.load(scenario, options)
