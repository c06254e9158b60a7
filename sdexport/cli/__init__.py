"""The command line: one thin function a verb, and what they share in how they fail."""

from sdexport.cli.app import app, main

__all__ = ["app", "main"]
