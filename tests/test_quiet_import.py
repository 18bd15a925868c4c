"""One message of bitsandbytes' import is kept out; whatever else it says is heard."""

import logging
import subprocess
import sys

from qpeft.quiet_import import without_kernel_advice

NAME = "bitsandbytes.backends.cpu.ops"
ADVICE = "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure ..."


def test_one_message_for_as_long_as_the_import_lasts(caplog):
    logger = logging.getLogger(NAME)
    with without_kernel_advice():
        logger.warning(ADVICE, "no module")
        logger.error("the library is broken")
    logger.warning(ADVICE, "no module")
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_importing_says_nothing():
    ran = subprocess.run([sys.executable, "-c", "import qpeft"], capture_output=True, text=True, check=True)
    assert "Failed to load" not in ran.stderr
