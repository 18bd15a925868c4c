"""`python -m qpeft` is the same as the `qpeft` command."""

from qpeft.cli import main

main()
