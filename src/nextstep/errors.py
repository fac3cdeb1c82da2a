"""Errors that are somebody's input, told in one sentence; commands end with status 2 on them."""

from __future__ import annotations


class NextStepError(ValueError):
    """Bad input: the message says what is wrong and how to mend it."""


class ModelFileError(NextStepError):
    """A model folder that is missing, damaged or does not fit its config."""
