"""The command line: one file a command, each a thin face of the library below it.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted (and resumable).
"""

import errno
import os
import sys

import typer

from qpeft.cli.console import report_error
from qpeft.errors import InputError, Interrupted, MissingDependencyError, QPeftError


def main() -> None:
    """Entry point of the `qpeft` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and give its exit code; what a user can fix is told in one sentence, without a traceback."""
    # peft asks the hub about the base at every save; without a network that must not hold a run up
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "3")
    from qpeft.cli.app import app

    try:
        code = app(arguments, standalone_mode=False)
        return int(code or 0)
    except Interrupted as error:
        report_error(str(error), "interrupted")
        return 130
    except (InputError, MissingDependencyError) as error:
        report_error(str(error))
        return 2
    except QPeftError as error:
        report_error(str(error))
        return 1
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        report_error("what was saved stays; the same command with --resume goes on", "interrupted")
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.errno == errno.ENOSPC:
            report_error("the disk is full: free some space and run the same command with --resume")
            return 1
        raise
    except Exception as error:
        # typer's own usage errors know how to print themselves
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return int(error.exit_code)
        raise
