"""How this room tells what it is doing: always to the log, and to a caller's function when one was given."""

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]


def report(progress: Progress | None, step: str) -> None:
    """Log `step` and pass it to `progress`, which a command line shows to the user."""
    logger.info(step)
    if progress is not None:
        progress(step)
