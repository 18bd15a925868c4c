"""The circuit simulator against other frameworks and against the machine's limits.

    python benchmarks/peers/setup.py                    # once: the peers' environments
    python benchmarks/circuit_kernel.py --prepare       # once, half an hour: compile what is kept on disk
    python benchmarks/circuit_kernel.py                 # the whole grid, about 25 minutes on 2 cores
    python benchmarks/circuit_kernel.py --quick         # a few points, about 2 minutes
    python benchmarks/circuit_kernel.py --qubits 8 --layers 2 --batch 4096 --threads 1 --peers flagquantum

Every sample is one token: ``(batch, n)`` inputs and shared weights give ``(batch, n)`` expectations <Z_i>,
forward, and forward and backward for inputs and weights. Contenders are worker processes in environments of their
own; they take turns repeat by repeat in one run, and the ratio at a point is the median over repeats of the
ratios. One thread counts CPU time of the process, more threads wall time. Calls shorter than 20 ms are repeated
inside a measurement.

Before a contender is timed, its outputs and both gradients, at the very shape that is timed, are compared with a
dense reference in double precision. Who is off by more than 1e-4 (weights: relative to the largest entry) is named
and not timed; so is who does not install, fails or takes too long. Rules keep the slow ones from taking all
the time, and the report marks what they touch. They do not touch this library's own calls.

- A call is limited to 2^28 amplitude updates (gates x 2^n x samples), to 4 GB of saved states and, once its speed is
  known, to 1.5 s; of a larger batch it runs a part, scaled up, as its user would split the batch.
- A contender over 20 times slower than the fastest peer is not run on larger batches of the same circuit; over 3
  times, if it would run only a part of them. Over 2 times, one repeat has to do.
- On more than one thread only batches 1024 and 16384 (unless --batch is given) and the three fastest peers of one
  thread run.

Results are saved after every point (``results.json``), and the same command goes on where it was stopped. The
folder also gets ``report.md`` and the plots.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import circuit_floor
from circuit_report import claims, write_report
from peers.contenders import CONTENDERS, FOLDER_VARIABLE, Contender, environments
from peers.pipes import WorkerError, WorkerProcess
from peers.program import Program
from peers.reference import evaluate
from qpeft.circuits import Circuit, qtha_block, rotation_cnot_ring
from qpeft.simulators import native

ANSAETZE = {"rotation_cnot_ring": rotation_cnot_ring, "qtha_block": qtha_block}
OURS = "qpeft"
WORK = 2**28  # amplitude updates of one call
MEMORY = 4e9  # bytes of states an autograd framework may save in one call
TOLERANCE = 1e-4
LONGEST = 1.5  # seconds of a call, as far as they can be foreseen
TOO_SLOW = 20  # times the fastest peer
SLOW = 3  # the same for a contender that would run only a part of the batch
MODES = ("forward", "both")
BATCHES = [256, 1024, 4096, 16384]


class Point(NamedTuple):
    """One place of the grid."""

    ansatz: str
    n: int
    layers: int
    batch: int
    threads: int

    @property
    def key(self) -> str:
        return f"{self.ansatz} n={self.n} L={self.layers} B={self.batch} threads={self.threads}"

    @property
    def config(self) -> tuple[str, int, int, int]:
        """The point without its batch."""
        return self.ansatz, self.n, self.layers, self.threads

    def circuit(self) -> Circuit:
        return ANSAETZE[self.ansatz](self.n, self.layers)

    def part(self) -> int:
        """How many samples the other contenders get in one call."""
        gates = len(self.circuit().gates)
        updates = gates * 2**self.n
        limit = min(WORK, MEMORY / 8) / updates
        return self.batch if limit >= self.batch else power_of_four(limit)

    def weight(self) -> float:
        """Expected seconds, up to a factor: for the progress display and the sharing out of the time."""
        return 1 + 8 * len(self.circuit().gates) * 2**self.n * self.part() / WORK


# Memory is measured on this circuit, beyond what so small a batch takes.
MEMORY_POINT = Point("rotation_cnot_ring", 8, 2, 16, 1)


@dataclass
class Entry:
    """A contender at one point."""

    samples: int
    loops: dict[str, int] = field(default_factory=dict)
    rounds: list[dict[str, float]] = field(default_factory=list)  # seconds of one call on the whole batch
    spent: float = 0.0  # seconds that one more round costs
    errors: dict[str, float] = field(default_factory=dict)
    note: str | None = None
    reason: str | None = None

    def record(self) -> dict[str, Any]:
        if self.reason is not None:
            return {"reason": self.reason}
        return {"note": self.note, "samples": self.samples, "errors": self.errors, "rounds": self.rounds}


class Race:
    """The workers, and what is known about the contenders so far."""

    def __init__(self, contenders: list[Contender], envs: Path, patience: float, results: dict[str, Any]) -> None:
        self.contenders, self.envs, self.patience, self.results = contenders, envs, patience, results
        self.absent: dict[str, str] = {}
        self._workers: dict[tuple[str, int], WorkerProcess] = {}
        for contender in contenders:
            reason = why_absent(contender, envs)
            if reason is not None:
                self.absent[contender.name] = reason

    def worker(self, contender: Contender, threads: int) -> WorkerProcess:
        key = (contender.name, threads)
        if key not in self._workers or not self._workers[key].alive:
            self._workers[key] = WorkerProcess(contender, self.envs, threads)
        return self._workers[key]

    def stop(self) -> None:
        for worker in self._workers.values():
            worker.stop()
        self._workers.clear()

    def run(self, point: Point, repeats: int, seconds: float) -> dict[str, Any]:
        """Time all contenders at a point; ``seconds`` is what it should take, where that is possible."""
        start = time.monotonic()
        for key in [k for k in self._workers if k[1] != point.threads]:  # idle pools of threads disturb the others
            self._workers.pop(key).stop()
        entries = {c.name: self._entry(point, c) for c in self.contenders}
        running = [c for c in self.contenders if entries[c.name].reason is None]
        with tempfile.TemporaryDirectory() as folder:
            arrays = Path(folder) / "arrays.npz"
            reference = make_arrays(point, min(entries[c.name].samples for c in running), arrays)
            for contender in running:
                self._attempt(self._prepare, contender, entries[contender.name], point, arrays, reference)
        for _ in range(repeats - 1):
            going = [c for c in running if entries[c.name].reason is None]
            peers = [entries[c.name].rounds[0]["both"] for c in going if c.is_peer]
            limit = 2 * min(peers, default=math.inf)  # of the slower ones one round is enough
            going = [c for c in going if entries[c.name].rounds[0]["both"] <= limit]
            cost = sum(entries[c.name].spent for c in going)
            done = max((len(entry.rounds) for entry in entries.values()), default=0)
            if not going or (done >= 3 and time.monotonic() - start + cost > seconds):
                break
            for contender in going:
                self._attempt(self._time, contender, entries[contender.name], point)
        took = time.monotonic() - start
        return {**point._asdict(), "took": took, "contenders": {n: entry.record() for n, entry in entries.items()}}

    def _entry(self, point: Point, contender: Contender) -> Entry:
        """How much of the batch a contender gets, or why it is left out."""
        entry = Entry(point.batch, reason=self.absent.get(contender.name))
        if contender.name == OURS or entry.reason is not None:
            return entry
        entry.samples = point.part()
        known = [(Point(*(r[k] for k in Point._fields)), r) for r in self.results["points"].values()]
        smaller = [(here, r) for here, r in known if here.config == point.config and here.batch < point.batch]
        for here, record in sorted(smaller, key=lambda pair: pair[0].batch):
            own = record["contenders"].get(contender.name, {})
            if "rounds" in own:
                seconds = statistics.median(r["both"] for r in own["rounds"])
                if not contender.compiles and seconds / here.batch * entry.samples > LONGEST:
                    entry.samples = power_of_four(LONGEST / seconds * here.batch)
                ratio = seconds / min(peer_times(record).values(), default=math.inf)
                if ratio > TOO_SLOW or (ratio > SLOW and entry.samples < point.batch):
                    entry.reason = f"{ratio:.0f} times slower than the fastest peer at batch {here.batch}"
            elif str(own.get("reason", "")).startswith("no answer"):
                entry.reason = f"{own['reason']} at batch {here.batch}"
        if point.threads > 1 and contender.name != "fallback":
            for times in (peer_times(record) for here, record in known if here == point._replace(threads=1)):
                if contender.name not in sorted(times, key=lambda peer: times[peer])[:3]:
                    entry.reason = "not among the three fastest peers on one thread"
        return entry

    def _attempt(self, action: Any, contender: Contender, entry: Entry, *rest: Any) -> None:
        try:
            action(contender, entry, *rest)
        except WorkerError as error:
            entry.reason = str(error)

    def _prepare(self, contender: Contender, entry: Entry, point: Point, arrays: Path, reference: Reference) -> None:
        worker = self.worker(contender, point.threads)
        answer = arrays.with_name("answer.npz")
        entry.note = load(worker, self.patience, point, arrays, entry.samples)["note"]
        worker.ask(self.patience, do="check", to=str(answer))
        with numpy.load(answer) as given:
            entry.errors = reference.errors(given)
        if not max(entry.errors.values()) <= TOLERANCE:  # also if one is not a number
            raise WorkerError("wrong numbers: " + ", ".join(f"{k} off by {v:.1e}" for k, v in entry.errors.items()))
        self._time(contender, entry, point)

    def _time(self, contender: Contender, entry: Entry, point: Point) -> None:
        start, times = time.monotonic(), {}
        for mode in MODES:
            answer = self.worker(contender, point.threads).ask(
                self.patience, do="time", what=mode, loops=entry.loops.get(mode, 0)
            )
            entry.loops[mode] = answer["loops"]
            seconds = answer["cpu" if point.threads == 1 else "wall"]
            times[mode] = seconds / answer["loops"] * point.batch / entry.samples
        entry.rounds.append(times)
        entry.spent = time.monotonic() - start


class Reference(NamedTuple):
    """Double-precision results for the rows whose checking cotangent is not zero."""

    rows: numpy.ndarray
    outputs: numpy.ndarray
    to_inputs: numpy.ndarray
    to_weights: numpy.ndarray

    def errors(self, given: Any) -> dict[str, float]:
        scale = max(1.0, numpy.abs(self.to_weights).max(initial=0))
        return {
            "outputs": float(max(numpy.abs(given[k][self.rows] - self.outputs).max() for k in ("forward", "outputs"))),
            "inputs": float(numpy.abs(given["to_inputs"][self.rows] - self.to_inputs).max()),
            "weights": float(numpy.abs(given["to_weights"] - self.to_weights).max() / scale),
        }


def make_arrays(point: Point, samples: int, file: Path) -> Reference:
    """Write inputs, weights and cotangents; the checking one is zero but for a few of the first rows."""
    circuit = point.circuit()
    random = numpy.random.default_rng(point.n * 1000 + point.layers)
    weights = random.uniform(-numpy.pi, numpy.pi, circuit.n_weights).astype(numpy.float32)
    inputs = random.uniform(-numpy.pi, numpy.pi, (point.batch, point.n)).astype(numpy.float32)
    cotangent = random.normal(size=inputs.shape).astype(numpy.float32)
    count = min(samples, max(1, min(32, 2**15 >> point.n)))
    rows = numpy.unique(numpy.linspace(0, samples - 1, count).astype(int))
    checking = numpy.zeros_like(cotangent)
    checking[rows] = cotangent[rows]
    numpy.savez(file, inputs=inputs, weights=weights, cotangent=cotangent, checking=checking)
    outputs, to_inputs, to_weights = evaluate(Program(circuit.key), inputs[rows], weights, cotangent[rows])
    return Reference(rows, outputs, to_inputs, to_weights.sum(0))


def power_of_four(limit: float) -> int:
    """The largest power of four up to a limit, at least 1: few shapes, so that little is compiled."""
    return 4 ** int(math.log(max(limit, 1), 4) + 1e-9)


def load(worker: WorkerProcess, patience: float, point: Point, arrays: Path, samples: int) -> dict[str, Any]:
    return worker.ask(patience, do="load", circuit=point.circuit().key, arrays=str(arrays), samples=samples)


def peer_times(record: dict[str, Any]) -> dict[str, float]:
    """Seconds of forward and backward of every peer that ran at a point."""
    peers = {c.name for c in CONTENDERS if c.is_peer}
    return {
        name: statistics.median(r["both"] for r in entry["rounds"])
        for name, entry in record["contenders"].items()
        if name in peers and "rounds" in entry
    }


def why_absent(contender: Contender, envs: Path) -> str | None:
    """Why a contender cannot take part; ``None`` if it can."""
    if not contender.packages:
        return None
    record = contender.folder(envs) / "result.json"
    if not record.exists():
        return "not installed: run python benchmarks/peers/setup.py"
    reason = json.loads(record.read_text(encoding="utf-8"))["reason"]
    return None if reason is None else f"did not install: {reason}"


def versions(contender: Contender, envs: Path) -> dict[str, str]:
    """Versions of a contender's distributions, asked of its own interpreter."""
    program = (
        "import sys, json; from importlib.metadata import version as v; print(json.dumps(list(map(v, sys.argv[1:]))))"
    )
    ran = subprocess.run(
        [str(contender.python(envs)), "-c", program, *contender.version_of], capture_output=True, text=True, check=True
    )
    return dict(zip(contender.version_of, json.loads(ran.stdout), strict=True))


def overhead(race: Race, patience: float) -> list[dict[str, Any]]:
    """Our call at 1, 128 and 4096 samples, n = 4, L = 1: what a call costs beside its samples."""
    ours, found = race.contenders[0], []
    for ansatz in ANSAETZE:
        worker, times = race.worker(ours, 1), {}
        for batch in (1, 128, 4096):
            point = Point(ansatz, 4, 1, batch, 1)
            with tempfile.TemporaryDirectory() as folder:
                arrays = Path(folder) / "arrays.npz"
                make_arrays(point, batch, arrays)
                load(worker, patience, point, arrays, batch)
                worker.ask(patience, do="check", to=str(arrays.with_name("answer.npz")))
            for mode in MODES:
                loops, rounds = 0, []
                for _ in range(7):
                    answer = worker.ask(patience, do="time", what=mode, loops=loops)
                    loops = answer["loops"]
                    rounds.append(answer["cpu"] / loops)
                times[mode, batch] = statistics.median(rounds)
        for mode in MODES:
            slope = (times[mode, 4096] - times[mode, 128]) / (4096 - 128)
            found.append(
                {
                    "ansatz": ansatz,
                    "mode": mode,
                    "one": times[mode, 1],
                    "call": times[mode, 128],
                    "samples": 128 * slope,
                    "beside": times[mode, 128] - 128 * slope,
                }
            )
    return found


def memory(race: Race, patience: float, batches: list[int]) -> list[dict[str, Any]]:
    """Peak resident memory that forward and backward adds, n = 8, L = 2, each in a fresh process."""
    found = []
    for contender in race.contenders:
        growth: dict[str, float | str] = {}
        for batch in batches:
            point = MEMORY_POINT._replace(batch=batch)
            if race.absent.get(contender.name) or (contender.name != OURS and point.part() < batch):
                continue
            worker = None
            try:
                worker = WorkerProcess(contender, race.envs, 1)
                with tempfile.TemporaryDirectory() as folder:
                    arrays = Path(folder) / "arrays.npz"
                    make_arrays(point, 1, arrays)
                    for samples in (MEMORY_POINT.batch, batch):
                        before = worker.ask(patience, do="memory")["peak"]
                        load(worker, patience, point, arrays, samples)
                        worker.ask(patience, do="check", to=str(arrays.with_name("answer.npz")))
                growth[str(batch)] = worker.ask(patience, do="memory")["peak"] - before
            except WorkerError as error:
                growth[str(batch)] = str(error)
            finally:
                if worker is not None:
                    worker.stop()
        if growth:
            found.append({"contender": contender.name, "mib": growth})
    return found


def prepare(points: list[Point], contenders: list[Contender], envs: Path, console: Console) -> None:
    """Let the contenders that compile do so at every shape of the grid, one process for each core."""
    points = [*points, MEMORY_POINT, *(MEMORY_POINT._replace(batch=batch) for batch in BATCHES[1:])]
    shapes = {point._replace(batch=point.part()) for point in points}
    for contender in (c for c in contenders if c.compiles and why_absent(c, envs) is None):
        for threads in sorted({shape.threads for shape in shapes}):
            todo = sorted(
                (s for s in shapes if s.threads == threads), key=lambda s: len(s.circuit().gates), reverse=True
            )
            cores = range(os.cpu_count() or 1)
            with ThreadPoolExecutor(len(cores)) as pool:
                list(pool.map(lambda place: compile_all(contender, todo, envs, place, console), cores))  # noqa: B023


def compile_all(contender: Contender, todo: list[Point], envs: Path, place: int, console: Console) -> None:
    """Take shapes off the end of a list that other threads share until it is empty."""
    worker: WorkerProcess | None = None
    try:
        while todo:
            shape, start, outcome = todo.pop(), time.monotonic(), ""
            try:
                if worker is None or not worker.alive:
                    worker = WorkerProcess(contender, envs, shape.threads, place)
                with tempfile.TemporaryDirectory() as folder:
                    arrays = Path(folder) / "arrays.npz"
                    make_arrays(shape, 1, arrays)
                    load(worker, 3600, shape, arrays, shape.batch)
                    worker.ask(3600, do="check", to=str(arrays.with_name("answer.npz")))
            except WorkerError as error:
                outcome = f": {error}"
            console.print(f"{shape.key}: {time.monotonic() - start:.0f} s{outcome}; {len(todo)} left", highlight=False)
    except IndexError:  # another thread took the last one
        pass
    finally:
        if worker is not None:
            worker.stop()


def grid(arguments: argparse.Namespace) -> list[Point]:
    """The points that were asked for, batches of a circuit from small to large, one thread first."""
    points = []
    for threads in sorted(arguments.threads):
        batches = arguments.batch or (BATCHES if threads == 1 else BATCHES[1::2])
        for ansatz in arguments.ansatz:
            for n in sorted(arguments.qubits):
                for layers in sorted(arguments.layers):
                    points += [Point(ansatz, n, layers, batch, threads) for batch in sorted(batches)]
            points += [Point(ansatz, n, 2, max(1, 2 ** (11 - n // 2)), threads) for n in sorted(arguments.large)]
    return points


def describe() -> dict[str, Any]:
    """The machine and the state of the code."""
    root = Path(__file__).parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = (names or [model])[0]
    changed = "" if not git("status", "--porcelain", "--", "src", "native") else " with changes"
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "commit": git("rev-parse", "--short", "HEAD") + changed,
        "date": time.strftime("%Y-%m-%d"),
    }


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = [c.name for c in CONTENDERS if c.name != OURS]
    parser.add_argument("--ansatz", nargs="+", choices=ANSAETZE, default=list(ANSAETZE), help="circuits")
    parser.add_argument("--qubits", nargs="*", type=int, default=[4, 6, 8, 10, 12])
    parser.add_argument("--layers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--batch", nargs="+", type=int, help="default: " + " ".join(map(str, BATCHES)))
    parser.add_argument("--large", nargs="*", type=int, default=[14, 16, 18], help="qubits at L = 2, batch 16, 8, 4")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--peers", nargs="*", choices=peers, default=peers, help="who runs beside qpeft")
    parser.add_argument("--repeats", type=int, default=5, help="most repeats at a point; at least 3 (default: 5)")
    parser.add_argument("--minutes", type=float, default=25, help="time to share out over the points (default: 25)")
    parser.add_argument("--patience", type=float, default=300, help="seconds before a call is given up (default: 300)")
    parser.add_argument("--quick", action="store_true", help="n = 4 and 8, L = 2, batch 1024, n = 14, one thread")
    parser.add_argument("--prepare", action="store_true", help="only compile what is compiled ahead, and keep it")
    parser.add_argument("--report", action="store_true", help="only write the report of what is there")
    parser.add_argument("--fresh", action="store_true", help="forget the results that the folder holds")
    parser.add_argument("--output", type=Path, default=Path("runs/circuit-kernel"), help="folder of the results")
    parser.add_argument(
        "--envs", help=f"folder of the peers' environments (default: ${FOLDER_VARIABLE}, or beside them)"
    )
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.qubits, arguments.layers, arguments.batch = [4, 8], [2], [1024]
        arguments.large, arguments.threads, arguments.minutes = [14], [1], min(arguments.minutes, 2)
    return arguments


def measure(arguments: argparse.Namespace, points: list[Point], results: dict[str, Any], console: Console) -> None:
    """Fill in the points that are missing, saving after each."""
    envs = environments(arguments.envs)
    chosen = [c for c in CONTENDERS if c.name == OURS or c.name in arguments.peers]
    race = Race(chosen, envs, arguments.patience, results)
    for name, reason in race.absent.items():
        console.print(f"[yellow]{name}: {reason}[/yellow]")
    results["machine"] = describe()
    if not native.available():
        console.print(f"[yellow]qpeft runs in plain torch: {native.description()}[/yellow]")
    results["absent"] = race.absent
    results["versions"] = {c.name: versions(c, envs) for c in chosen if c.name not in race.absent}
    missing = [point for point in points if not complete(results, point, chosen)]
    todo = sum(point.weight() for point in missing)
    left = 60 * arguments.minutes
    try:
        find_limits(points, results)
        with bar(console) as progress:
            task = progress.add_task("", total=todo)
            for place, point in enumerate(missing, start=1 + len(points) - len(missing)):
                progress.update(task, description=f"{place}/{len(points)} {point.key}")
                start = time.monotonic()
                record = race.run(point, max(3, arguments.repeats), left * point.weight() / todo)
                results["points"][point.key] = {**record, "commit": results["machine"]["commit"]}
                left, todo = left - (time.monotonic() - start), todo - point.weight()
                save(arguments.output, results)
                console.print(line(results["points"][point.key]), highlight=False)
                progress.advance(task, point.weight())
        if "overhead" not in results:
            console.print("call overhead ...")
            results["overhead"] = overhead(race, arguments.patience)
            save(arguments.output, results)
        if "memory" not in results:
            console.print("memory ...")
            batches = [batch for batch in arguments.batch or BATCHES if batch >= 1024]
            results["memory"] = memory(race, arguments.patience, batches)
            save(arguments.output, results)
        race.stop()
        find_limits(points, results)
        save(arguments.output, results)
    finally:
        race.stop()


def find_limits(points: list[Point], results: dict[str, Any]) -> None:
    """Measure the machine, keeping the highest figures found yet: neighbours only ever lower them."""
    for threads in sorted({point.threads for point in points}):
        found = circuit_floor.measure(threads)
        for known in (m for count, m in results["limits"].items() if int(count) <= threads):
            bandwidth = {size: max(value, known["bandwidth"][str(size)]) for size, value in found.bandwidth.items()}
            found = found._replace(flops=max(found.flops, known["flops"]), bandwidth=bandwidth)
        record = {"flops": found.flops, "source": found.source}
        results["limits"][str(threads)] = {**record, "bandwidth": {str(k): v for k, v in found.bandwidth.items()}}


def complete(results: dict[str, Any], point: Point, chosen: list[Contender]) -> bool:
    record = results["points"].get(point.key)
    return record is not None and all(c.name in record["contenders"] for c in chosen)


def bar(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True, speed_estimate_period=600)


def line(record: dict[str, Any]) -> str:
    """One point in one line: our time per sample and everybody's ratio to it, or why there is none."""
    point = Point(*(record[k] for k in Point._fields))
    ours = record["contenders"][OURS]
    if "rounds" not in ours:
        return f"{point.key}: {OURS}: {ours['reason']}"
    micro = statistics.median(r["both"] for r in ours["rounds"]) / point.batch * 1e6
    parts = []
    for name, entry in record["contenders"].items():
        if name != OURS:
            ratios = [a["both"] / b["both"] for a, b in zip(entry.get("rounds", []), ours["rounds"], strict=False)]
            part = "" if entry.get("samples", point.batch) == point.batch else "~"
            parts.append(f"{name} {part}{statistics.median(ratios):.1f}" if ratios else f"{name} -")
    return f"{point.key}: {micro:.3g} µs per sample; " + ", ".join(parts)


def save(folder: Path, results: dict[str, Any]) -> None:
    """Write the results, never leaving half a file behind."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "results.json.new"
    unfinished.write_text(json.dumps(results), encoding="utf-8")
    unfinished.replace(folder / "results.json")


def main() -> int:
    arguments = parse()
    console = Console()
    points = grid(arguments)
    chosen = [c for c in CONTENDERS if c.name in arguments.peers]
    if arguments.prepare:
        prepare(points, chosen, environments(arguments.envs), console)
        return 0
    results: dict[str, Any] = {"points": {}, "limits": {}}
    file = arguments.output / "results.json"
    if file.exists() and not arguments.fresh:
        results = json.loads(file.read_text(encoding="utf-8"))
    if not arguments.report:
        try:
            measure(arguments, points, results, console)
        except KeyboardInterrupt:
            console.print(f"stopped; what was measured is in {file}, and the same command goes on")
            return 130
    elif not results["points"]:
        console.print(f"{file} holds no results; run without --report first")
        return 2
    report = write_report(arguments.output, results)
    found = claims(results)
    for text, value, kept in found:
        console.print(f"{'kept    ' if kept else 'NOT kept'} {text}: {value}", highlight=False)
    console.print(f"report: {report}")
    return 0 if all(kept for *_, kept in found) else 1


if __name__ == "__main__":
    sys.exit(main())
