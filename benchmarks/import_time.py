"""What ``import qpeft`` adds to ``import peft``.

    python benchmarks/import_time.py [--runs 7]

Claim: at most 0.3 s. Each run is a fresh interpreter that imports peft first and then qpeft, and the median of the
second import counts.
"""

import argparse
import statistics
import subprocess
import sys

LIMIT = 0.3

PROGRAM = """
import time
start = time.perf_counter()
import peft
middle = time.perf_counter()
import qpeft
print(middle - start, time.perf_counter() - middle)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    runs = []
    for _ in range(options.runs + 1):
        output = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
        runs.append([float(word) for word in output.split()])
    peft, added = (statistics.median(column) for column in zip(*runs[1:], strict=True))
    print(f"import peft {peft:.2f} s; import qpeft adds {added:.2f} s ({(peft + added) / peft:.2f} x)")
    print(f"claim (at most {LIMIT} s): {'kept' if added <= LIMIT else 'NOT kept'}")
    return 0 if added <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
