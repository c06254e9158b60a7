"""Suppresses warnings, log lines and progress bars of the export's libraries."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NOISY = ("torch", "onnxscript", "onnx_ir", "diffusers", "transformers")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses warnings and log lines of torch's exporter during the body.

    Examples: decompositions that are registered twice, integer divisions in shapes, the progress of
    the version converter. Users cannot act on them.
    """
    named = [
        logging.getLogger(name)
        for name in (*NOISY, *logging.root.manager.loggerDict)
        if name.partition(".")[0] in NOISY
    ]
    before = [(logger, logger.level) for logger in named]
    try:
        for logger in named:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in before:
            logger.setLevel(level)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Suppresses progress bars and log lines of diffusers and transformers during the body."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    shown = [library.is_progress_bar_enabled() for library in libraries]
    try:
        for library in libraries:
            library.disable_progress_bar()
        with quiet():
            yield
    finally:
        for library, was_shown in zip(libraries, shown, strict=True):
            if was_shown:
                library.enable_progress_bar()
