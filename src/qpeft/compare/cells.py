"""The cells of a plan as jobs, and their results as files.

A job trains one arm once and, in the final stage, measures it on the test set, together with the arms that are only
another way to evaluate the same trained numbers. What decides its numbers is hashed into a key; a result file that
holds the key stands for the cell, in this folder or in one that the plan reuses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qpeft.compare.catalogue import ArmSpec
from qpeft.compare.plan import Plan
from qpeft.compare.results import CellResult, Stage
from qpeft.errors import InputError
from qpeft.training.run_folder import write_text

#: raised when the same plan would give other numbers than before
_NUMBERS = 1


@dataclass(frozen=True)
class Part:
    """One result that a job gives: the arm as trained (`how` is empty), or evaluated otherwise."""

    arm: str
    name: str
    key: str
    how: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One training with its measurements, as it travels to a worker.

    Attributes:
        base: Name in the plan.
        task: Name in the plan.
        arm: Name of the arm that is trained.
        learning_rate: 0 where nothing is trained.
        seed: Of the training.
        stage: `"sweep"` or `"final"`.
        recipe: The run as values of a recipe; its adapter section is missing where nothing is trained.
        parts: What comes of it.
        keep_adapter: Whether the run folder stays.
        cache_folder: Where activations below the adapters are kept, if they are.
    """

    base: str
    task: str
    arm: str
    learning_rate: float
    seed: int
    stage: Stage
    recipe: dict[str, Any]
    parts: tuple[Part, ...]
    keep_adapter: bool = False
    cache_folder: str | None = None

    @property
    def name(self) -> str:
        """Name of its run folder."""
        return self.parts[0].name

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Job:
        return cls(**{**values, "parts": tuple(Part(**part) for part in values["parts"])})


class Cells:
    """The result files of a comparison, and those it may take over.

    Args:
        folder: Of the comparison.
        reuse: Other comparisons' folders, or files with a result a line.

    Raises:
        InputError: One of `reuse` is missing or cannot be read.
    """

    def __init__(self, folder: Path, reuse: Iterable[str] = ()) -> None:
        self.folder = folder / "cells"
        self._found: dict[tuple[str, str], CellResult] = {}
        self._others: dict[str, dict[str, Any]] = {}
        for source in reuse:
            self._others.update((values["key"], values) for values in _read_source(Path(source)))

    def find(self, part: Part) -> CellResult | None:
        """The result of a part, if it was measured here or elsewhere; what comes from elsewhere is copied."""
        if (part.name, part.key) in self._found:
            return self._found[part.name, part.key]
        path = self.folder / f"{part.name}.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("key") == part.key:
                return self._found.setdefault((part.name, part.key), CellResult.from_dict(values))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not measured yet, or a file that was damaged from outside: measured again
        if part.key in self._others:
            values = dict(self._others[part.key])
            values.pop("key")
            result = CellResult.from_dict({**values, "arm": part.arm})
            self.save(part, result)
            return result
        return None

    def save(self, part: Part, result: CellResult) -> None:
        """Write a result so that a reader sees all of it or nothing."""
        write_text(self.folder / f"{part.name}.json", _line(part.key, result) + "\n")
        self._found[part.name, part.key] = result

    def gather(self, parts: Iterable[Part], path: Path) -> None:
        """Write the results of these parts into one file, one a line, in their order."""
        found = ((part, self.find(part)) for part in parts)
        write_text(path, "".join(_line(part.key, cell) + "\n" for part, cell in found if cell is not None))


def sweep_jobs(
    plan: Plan, base: str, task: str, arms: Iterable[ArmSpec], rates: Mapping[str, Iterable[float]], model: str
) -> Iterator[Job]:
    """The jobs that choose learning rates at one place.

    Args:
        plan: The plan.
        base: Name of the base.
        task: Name of the task.
        arms: Resolved arms.
        rates: Learning rates of each arm.
        model: Name or folder of the base model.
    """
    for arm in arms:
        if arm.adapter is None:
            continue
        for rate in rates[arm.name]:
            for seed in plan.seeds.sweep:
                yield _job(plan, base, task, arm, rate, seed, "sweep", model, [])


def final_jobs(
    plan: Plan, base: str, task: str, arms: Iterable[ArmSpec], rates: Mapping[str, float], model: str
) -> Iterator[Job]:
    """The jobs that open the test set; arms without a rate in `rates` are left out."""
    arms = list(arms)
    trains = [arm for arm in arms if arm.of is None]
    others = {arm.name: [other for other in arms if other.of == arm.name] for arm in trains}
    for arm in trains:
        if arm.adapter is None:  # nothing is trained, so that one seed says it all
            yield _job(plan, base, task, arm, 0.0, plan.seeds.final[0], "final", model, others[arm.name])
    for seed in plan.seeds.final:  # seed by seed, so that a comparison that is half done has something of every arm
        for arm in trains:
            if arm.adapter is not None and arm.name in rates:
                yield _job(plan, base, task, arm, rates[arm.name], seed, "final", model, others[arm.name])


def _job(
    plan: Plan, base: str, task: str, arm: ArmSpec, rate: float, seed: int, stage: Stage, model: str,
    others: list[ArmSpec],
) -> Job:  # fmt: skip
    section, of_base = plan.tasks[task], plan.bases[base]
    assert of_base.model is not None  # set by the plan's validator
    name = f"{base}-{task}-{arm.name}-lr{rate:g}-s{seed}-{stage}" if arm.adapter else f"{base}-{task}-{arm.name}"
    folder = Path(plan.output)
    training = {"tensorboard": False, "logging_steps": 1, **plan.training, **section.training, **arm.training}
    if arm.adapter is not None:
        training |= {"learning_rate": rate, "seed": seed}
    recipe: dict[str, Any] = {
        "model": {**of_base.model.model_dump(), "name": model},
        "data": section.data.model_dump(),
        "training": training,
        "evaluation": section.evaluation.model_dump(),
    }
    if arm.adapter is not None:
        recipe["adapter"] = arm.adapter
    if plan.cache_activations is not None:
        recipe["training"]["cache_activations"] = plan.cache_activations
    # the folder a base was made in changes nothing; how it was made does
    identity = {**recipe, "base": of_base.pretrain or of_base.model.name, "stage": stage, "numbers": _NUMBERS}
    identity["model"] = {key: value for key, value in recipe["model"].items() if key != "name"}
    parts = [Part(arm.name, name, _key(identity))]
    for other in others:
        how = {key: value for key, value in (("branch", other.branch), ("execution", other.execution)) if value}
        other_name = f"{base}-{task}-{other.name}" + (f"-lr{rate:g}-s{seed}-{stage}" if arm.adapter else "")
        parts.append(Part(other.name, other_name, _key({**identity, "how": how}), how))
    return Job(
        base=base, task=task, arm=arm.name, learning_rate=rate, seed=seed, stage=stage,
        recipe={"output": str(folder / "runs" / name), **recipe}, parts=tuple(parts),
        keep_adapter=plan.keep_adapters and stage == "final",
        cache_folder=str(folder / "activations") if plan.cache_activations else None,
    )  # fmt: skip


def _key(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=sorted).encode()).hexdigest()[:24]


def _line(key: str, result: CellResult) -> str:
    return json.dumps({"key": key, **result.to_dict()}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _read_source(path: Path) -> Iterator[dict[str, Any]]:
    files = sorted((path / "cells").glob("*.json")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise InputError(f"reuse names {path}, which holds no results: name a comparison's folder or a .jsonl file")
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                values = json.loads(line)
                CellResult.from_dict({name: value for name, value in values.items() if name != "key"})
                assert isinstance(values["key"], str)
            except (ValueError, KeyError, TypeError, AssertionError) as error:
                raise InputError(f"reuse names {file}, whose line {number} is no result of a comparison") from error
            yield values
