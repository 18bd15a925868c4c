"""Keeps one message out of the import of peft: that bitsandbytes has no ready-made product of 4-bit matrices.

bitsandbytes says so whenever it is imported on a processor with AVX-512 for bfloat16, which peft does wherever it is
installed, also for commands that quantise nothing. The product is for inference alone and has no derivative; 4-bit
bases are used here without it (:mod:`qpeft.models.quantization`). Everything else that bitsandbytes says remains.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGER = "bitsandbytes.backends.cpu.ops"
_MESSAGE = "Failed to load CPU gemm_4bit_forward from kernels-community"


@contextmanager
def without_kernel_advice() -> Iterator[None]:
    """For as long as the block lasts."""
    logger = logging.getLogger(_LOGGER)
    logger.addFilter(_is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_MESSAGE)
