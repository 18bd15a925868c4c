"""Running a comparison: bases, arms, sweep, final cells, report; every step is taken up again where it was left.

resolve -> plan.yaml, arms.json   what will be done, written before the first step
sweep   -> cells/*.json           each arm's learning rate, chosen on the validation set
final   -> cells/*.json           fresh seeds; the test set is opened once a cell
report  -> report.html, report.md, report.json, cells.jsonl, plots/
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from qpeft.compare.catalogue import ArmSpec, build_arms
from qpeft.compare.cells import Cells, Job, Part, final_jobs, sweep_jobs
from qpeft.compare.grid_report import GridReport, write_grid_report
from qpeft.compare.local_engine import Outcome
from qpeft.compare.plan import Plan, changes, load_plan, make_plan, plan_yaml
from qpeft.compare.results import CellResult, GridResults, chosen_rate
from qpeft.compare.worker import work
from qpeft.errors import InputError, QPeftError
from qpeft.models.cache import is_disk_full
from qpeft.models.empty import empty_model
from qpeft.training.pretraining import pretrain, read_pretraining
from qpeft.training.run_folder import write_json, write_text

Say = Callable[[str], None]
Engine = Callable[[Sequence[dict[str, Any]], Callable[..., dict[str, Any]], int], Iterator[Outcome]]

#: seconds between two reports of a grid that runs
_REPORT_EVERY = 120.0


@dataclass(frozen=True)
class Event:
    """Told after every finished job: how far the grid is, and what the job gave (a sentence)."""

    done: int
    planned: int
    sentence: str


class Grid:
    """A comparison in its folder.

    Args:
        plan: The plan; a folder that holds another one is refused.
        say: Receives a sentence a step.

    Raises:
        InputError: The folder holds something else, or a plan that differs.
    """

    def __init__(self, plan: Plan, say: Say = lambda _: None) -> None:
        self.plan = plan
        self.folder = Path(plan.output)
        self.say = say
        self.arms: dict[str, list[ArmSpec]] = {}
        self.failures: dict[str, str] = {}
        self.written: GridReport | None = None
        self._check_folder()
        self.cells = Cells(self.folder, plan.reuse)

    def run(self, engine: Engine, n_workers: int = 1, tell: Callable[[Event], None] = lambda _: None) -> GridResults:
        """Do what is not done yet, then report.

        Raises:
            QPeftError: Cells failed for another reason than divergence; all others are kept.
        """
        with self._locked():
            models = self._resolve()
            self._work(engine, n_workers, tell, lambda: list(self._sweep(models)))
            self._work(engine, n_workers, tell, lambda: list(self._final(models)))
            results = self.report()
        if self.failures:
            name, reason = next(iter(self.failures.items()))
            raise QPeftError(
                f"{len(self.failures)} of the cells failed, the first being {name}: {reason}; what is finished is "
                f"kept, and qpeft compare {self.folder} tries the others again"
            )
        return results

    def report(self) -> GridResults:
        """Write the report of what there is by now."""
        results = self.results()
        self.written = write_grid_report(results, self.folder)
        self.cells.gather(self._parts(), self.folder / "cells.jsonl")
        return results

    def results(self) -> GridResults:
        """What has been measured so far."""
        if not self.arms:
            self._read_arms()
        found = (self.cells.find(part) for part in self._parts())
        infos = {base: {spec.name: spec.info for spec in specs} for base, specs in self.arms.items()}
        return GridResults(
            title=self.plan.title,
            arms=next(iter(infos.values())),
            cells=tuple(cell for cell in found if cell is not None),
            planned=self._planned(),
            metric={name: task.decides for name, task in self.plan.tasks.items()},
            command=f"qpeft compare {self.folder}",
            plan=yaml.safe_load(plan_yaml(self.plan)),
            elsewhere=dict(list(infos.items())[1:]),
        )

    def _check_folder(self) -> None:
        stored = self.folder / "plan.yaml"
        if (self.folder / "arms.json").exists():
            before = load_plan(stored).model_dump()
            differing = changes(before, {**self.plan.model_dump(), "output": before["output"]})
            if differing:
                raise InputError(
                    f"{self.folder} holds a comparison with another plan ({'; '.join(differing[:3])}"
                    f"{'; and more' if len(differing) > 3 else ''}): set output to another folder, and reuse: "
                    f"[{self.folder}] to take its finished cells along"
                )
        elif self.folder.exists() and not stored.exists() and any(self.folder.glob("[!.]*")):
            raise InputError(f"{self.folder} holds something else than a comparison: set output to another folder")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock", timeout=0)
            with lock:
                yield
        except Timeout as error:
            raise InputError(f"another process works on the comparison in {self.folder}: wait for it") from error
        except OSError as error:
            if is_disk_full(error):
                raise QPeftError(f"the disk of {self.folder} is full: free some space, and start again") from error
            raise InputError(f"{self.folder} cannot be written ({error.strerror}): set output elsewhere") from error

    def _resolve(self) -> dict[str, str]:
        """Make the bases and the arms, and write down what will be done; gives each base's model."""
        write_text(self.folder / "plan.yaml", plan_yaml(self.plan))
        models = {}
        for name, base in self.plan.bases.items():
            assert base.model is not None
            if base.pretrain is None:
                models[name] = base.model.name
            else:
                folder = self.folder / "bases" / name
                made = [Path(other) / "bases" / name for other in self.plan.reuse]
                models[name] = str(pretrain(read_pretraining(base.pretrain), folder, self.say, made=made))
        if (self.folder / "arms.json").exists():
            self._read_arms()
            return models
        for name in self.plan.bases:
            self.say(f"matching the arms' sizes on {name}")
            self.arms[name] = build_arms(self.plan.arms, self.plan.adapter, empty_model(models[name]))
        write_json(  # from here on the folder holds this plan and no other
            self.folder / "arms.json", {base: [asdict(spec) for spec in specs] for base, specs in self.arms.items()}
        )
        return models

    def _read_arms(self) -> None:
        try:
            stored = json.loads((self.folder / "arms.json").read_text(encoding="utf-8"))
            self.arms = {base: [ArmSpec.from_dict(spec) for spec in specs] for base, specs in stored.items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.folder} holds no comparison that was started: run its plan first") from error

    def _rates(self, base: str, task: str, spec: ArmSpec) -> list[float]:
        """The learning rates to sweep by now: the plan's, and beyond the edge that the best one lies at."""
        rates = sorted(spec.learning_rates or self.plan.learning_rates)
        if len(rates) < 2:
            return rates
        low, high = rates[0] / rates[1], rates[-1] / rates[-2]
        for _ in range(self.plan.extend_rates):
            best = chosen_rate(self._swept(base, task, spec, rates))
            if best is None or best not in (rates[0], rates[-1]):
                break
            further = best * (low if best == rates[0] else high)
            rates = sorted([*rates, float(f"{further:.4g}")])
        return rates

    def _swept(self, base: str, task: str, spec: ArmSpec, rates: Iterable[float]) -> list[CellResult]:
        """The finished sweep cells of an arm, if they all are; else nothing can be chosen yet."""
        jobs = list(sweep_jobs(self.plan, base, task, [spec], {spec.name: rates}, ""))
        found = [self.cells.find(job.parts[0]) for job in jobs]
        return [cell for cell in found if cell is not None] if all(found) else []

    def _sweep(self, models: dict[str, str]) -> Iterator[Job]:
        for base, task in self.plan.pairs():
            for spec in self._trained(base):
                rates = self._rates(base, task, spec)
                if len(rates) > 1:
                    yield from sweep_jobs(self.plan, base, task, [spec], {spec.name: rates}, models[base])

    def _final(self, models: dict[str, str]) -> Iterator[Job]:
        for base, task in self.plan.pairs():
            chosen = {}
            for spec in self._trained(base):
                rates = self._rates(base, task, spec)
                best = rates[0] if len(rates) == 1 else chosen_rate(self._swept(base, task, spec, rates))
                if best is not None:
                    chosen[spec.name] = best
            yield from final_jobs(self.plan, base, task, self.arms[base], chosen, models.get(base, ""))

    def _trained(self, base: str) -> list[ArmSpec]:
        return [spec for spec in self.arms[base] if spec.adapter is not None]

    def _parts(self) -> Iterator[Part]:
        """What belongs to the plan by now, in order."""
        for jobs in (self._sweep(dict.fromkeys(self.plan.bases, "")), self._final({})):
            for job in jobs:
                yield from job.parts

    def _planned(self) -> int:
        """Cells of the whole plan; learning rates that may still be added are not foreseen."""
        total = 0
        for base, task in self.plan.pairs():
            for spec in self.arms[base]:
                trained = spec if spec.of is None else self._spec(base, spec.of)
                if trained.adapter is None:
                    total += 1
                    continue
                rates = self._rates(base, task, trained)
                swept = self._swept(base, task, trained, rates) if len(rates) > 1 else []
                if not swept or chosen_rate(swept) is not None:  # what diverged at every rate is not trained again
                    total += len(self.plan.seeds.final)
                if spec is trained and len(rates) > 1:
                    total += len(rates) * len(self.plan.seeds.sweep)
        return total

    def _spec(self, base: str, name: str) -> ArmSpec:
        return next(spec for spec in self.arms[base] if spec.name == name)

    def _work(
        self, engine: Engine, n_workers: int, tell: Callable[[Event], None], jobs_by_now: Callable[[], list[Job]]
    ) -> None:
        """Do jobs until none is left; a sweep may add some when its best rate lies at an edge."""
        reported = time.monotonic()
        while True:
            rest = (
                replace(job, parts=tuple(part for part in job.parts if self.cells.find(part) is None))
                for job in jobs_by_now()
            )
            todo = [job for job in rest if job.parts and job.name not in self.failures]
            if not todo:
                return
            by_name = {job.name: job for job in todo}
            for values, answer in engine([job.to_dict() for job in todo], work, n_workers):
                job = by_name[values["parts"][0]["name"]]
                sentence = self._keep(job, answer)
                done = self._done()
                tell(Event(done, max(self._planned(), done), sentence))
                if time.monotonic() - reported > _REPORT_EVERY:
                    self.report()
                    reported = time.monotonic()

    def _keep(self, job: Job, answer: dict[str, Any] | Exception) -> str:
        """Store what a job gave, and say it."""
        if isinstance(answer, Exception):
            self.failures[job.name] = str(answer)
            return f"{job.name} failed: {answer}"
        cells = [CellResult.from_dict(values) for values in answer["cells"]]
        for part, cell in zip(job.parts, cells, strict=True):
            self.cells.save(part, cell)
        first = cells[0]
        if first.status == "diverged":
            return f"{job.name} diverged: {first.reason}"
        metric = first.metrics.get(self.plan.tasks[job.task].decides)
        numbers = [f"validation loss {first.eval_loss:.4f}"] if first.eval_loss is not None else []
        numbers += [f"{self.plan.tasks[job.task].decides} {metric:.4g}"] if metric is not None else []
        return f"{job.name}: {', '.join(numbers)}"

    def _done(self) -> int:
        return sum(self.cells.find(part) is not None for part in self._parts())


def read_grid(folder: str | Path) -> Grid:
    """The comparison of a folder, to report on or to go on with.

    Raises:
        InputError: There is none.
    """
    folder = Path(folder)
    if not (folder / "plan.yaml").is_file():
        raise InputError(f"{folder} holds no comparison: name a plan (YAML), or a folder that one has written")
    plan = load_plan(folder)
    return Grid(make_plan({**plan.model_dump(exclude={"bases"}), "bases": _given(plan), "output": str(folder)}))


def _given(plan: Plan) -> dict[str, Any]:
    return dict(yaml.safe_load(plan_yaml(plan))["bases"])


def remove_grid(folder: Path) -> None:
    """Remove what an earlier comparison left in a folder, and nothing that is none of its own."""
    if not (folder / "plan.yaml").is_file():
        return
    for name in ("cells", "runs", "bases", "activations", "plots"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("arms.json", "cells.jsonl", "report.html", "report.md", "report.json", "plan.yaml"):
        (folder / name).unlink(missing_ok=True)
