"""Silence while transformers loads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences progress bars and notices of transformers and the Hub while loading, and only
    then."""
    bars = transformers_logging.is_progress_bar_enabled()
    loggers = transformers_logging, hub_logging
    levels = [logger.get_verbosity() for logger in loggers]
    transformers_logging.disable_progress_bar()  # the Hub's, too
    for logger in loggers:
        logger.set_verbosity_error()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
