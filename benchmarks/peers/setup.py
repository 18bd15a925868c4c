"""Make the environments of the peers: one command, one virtual environment each.

    python benchmarks/peers/setup.py                     # all that are missing
    python benchmarks/peers/setup.py pennylane vqnet     # these
    python benchmarks/peers/setup.py --again             # anew

Versions are pinned in ``contenders.py``. A peer that does not install or import is recorded with the reason in
``result.json`` of its folder, and the benchmark names it; the others go on. The environments need about 6 GB. Where
plain ``torch`` means a CUDA build, point pip at CPU builds first (see the install page of PyTorch), or pass pip's
options on with ``--pip``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from contenders import CONTENDERS, FOLDER_VARIABLE, HERE, Contender, environments


def install(contender: Contender, envs: Path, pip_options: list[str]) -> str | None:
    """Make one environment; the reason if that fails, else ``None``."""
    folder = contender.folder(envs)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "install.log"
    python = str(contender.python(envs))
    steps = [[sys.executable, "-m", "venv", str(folder)]]
    steps += [[python, "-m", "pip", "install", "--no-input", *pip_options, *step] for step in contender.packages]
    steps.append([python, str(HERE / "worker.py"), contender.module, "--import-only"])
    with log.open("w", encoding="utf-8") as file:
        for step in steps:
            print(shlex.join(step), file=file, flush=True)
            if subprocess.run(step, stdout=file, stderr=subprocess.STDOUT, check=False).returncode:
                return f"{last_error(log)} (whole log: {log})"
    return None


def last_error(log: Path) -> str:
    """The line of a log that says most: pip's last ``ERROR:``, else the last one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no output"])[-1][:300]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = {contender.name: contender for contender in CONTENDERS if contender.packages}
    parser.add_argument("names", nargs="*", metavar="peer", help=f"which of {' '.join(peers)} (default: all)")
    parser.add_argument("--again", action="store_true", help="make environments anew that exist already")
    parser.add_argument("--envs", help=f"folder of the environments (default: ${FOLDER_VARIABLE} or {HERE / 'envs'})")
    parser.add_argument("--pip", default="", metavar="OPTIONS", help="options for every pip install, in one string")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(peers)
    if unknown:
        parser.error(f"unknown peer {' '.join(sorted(unknown))}; the peers are {' '.join(peers)}")
    envs = environments(arguments.envs)
    failed = 0
    for name in arguments.names or peers:
        record = peers[name].folder(envs) / "result.json"
        if not arguments.again and record.exists() and json.loads(record.read_text())["reason"] is None:
            print(f"{name}: there already")
            continue
        start = time.monotonic()
        print(f"{name}: installing {' '.join(peers[name].packages[-1])} ...", flush=True)
        reason = install(peers[name], envs, shlex.split(arguments.pip))
        record.write_text(json.dumps({"reason": reason}), encoding="utf-8")
        failed += reason is not None
        print(f"{name}: {'ready' if reason is None else 'FAILED: ' + reason} ({time.monotonic() - start:.0f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
