"""The command line: one file a command, each a thin face of the library below it.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted (and resumable). With QPEFT_TRACEBACK=1 in the environment
every error shows where in the code it arose; without it, only faults of the program itself do.
"""

import os
import sys
import traceback

import typer

from qpeft.cli.console import report_error
from qpeft.errors import InputError, Interrupted, MergeError, MissingDependencyError, QPeftError


def main() -> None:
    """Entry point of the `qpeft` command."""
    code = run(sys.argv[1:])
    if "LOCAL_RANK" in os.environ:  # one of several processes: taking their group apart at exit can wait forever
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command and give its exit code; what a user can fix is told in one sentence, without a traceback."""
    # peft asks the hub about the base at every save; without a network that must not hold a run up
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "3")
    from qpeft.cli.app import app

    try:
        code = int(app(arguments, standalone_mode=False, prog_name="qpeft") or 0)
        if code == 130:  # typer's way to hand on a Ctrl-C
            raise KeyboardInterrupt
        return code
    except (KeyboardInterrupt, typer.Abort):
        further = "; the same command with --resume goes on" if arguments[:1] == ["train"] else ""
        report_error(f"stopped, and what was saved stays{further}", "interrupted")
        return 130
    except Exception as error:
        if os.environ.get("QPEFT_TRACEBACK"):
            traceback.print_exception(error)
        return _report(error)


def _report(error: Exception) -> int:
    """Say what happened; the exit code."""
    from qpeft.models.cache import is_disk_full

    if isinstance(error, Interrupted):
        report_error(str(error), "interrupted")
        return 130
    if isinstance(error, InputError | MissingDependencyError | MergeError):
        report_error(str(error))
        return 2
    if isinstance(error, QPeftError):
        report_error(str(error))
        return 1
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # a wrong option: typer knows how to say it
        error.show()
        return int(error.exit_code)
    if is_disk_full(error):
        report_error("the disk is full: free some space and run the same command again")
        return 1
    if isinstance(error, OSError) and error.filename and error.strerror:
        report_error(f"{error.filename}: {error.strerror.lower()}")
        return 1
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in ("out of memory", "t allocate memory")):
        report_error("there is not enough memory: use smaller batches, shorter texts or a smaller model")
        return 1
    traceback.print_exception(error)
    report_error("this is a fault of qpeft itself; please report it with the lines above")
    return 1
