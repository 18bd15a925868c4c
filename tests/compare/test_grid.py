"""A comparison from plan to report: what is done, what is not done twice, what survives, what is refused."""

import copy
import json

import pytest
from filelock import FileLock

from qpeft.compare.cells import Job
from qpeft.compare.grid import Grid, read_grid, remove_grid
from qpeft.compare.plan import make_plan
from qpeft.compare.results import CellResult
from qpeft.compare.worker import work
from qpeft.errors import InputError, QPeftError

ARMS = ["adapter", "lora", "no-circuit", "branch-zero", "base"]


def values(base, output, **changes):
    plan = {
        "output": str(output),
        "bases": {"tiny": {"name": str(base), "dtype": "float32"}},
        "tasks": {
            "sums": {
                "data": {"train": "arithmetic", "max_steps": 1, "train_samples": 16, "validation_samples": 4},
                "evaluation": {"limit": 4, "batch_size": 4, "max_new_tokens": 4},
            }
        },
        "adapter": {"method": "qtha", "r": 2, "bond_dim": 2, "inner_features": 8, "target_modules": ["q_proj"]},
        "arms": list(ARMS),
        "learning_rates": [1e-3, 1e-2],
        "seeds": {"sweep": [9], "final": [0, 1]},
        "training": {"max_steps": 2, "per_device_train_batch_size": 2},
    }
    return copy.deepcopy({**plan, **changes})


def in_this_process(jobs, work, n_workers):
    """An engine without processes."""
    for job in jobs:
        yield job, work(job)


def invented(loss_of):
    """An engine that trains nothing and lets a function of the job say the validation loss."""

    def engine(jobs, work, n_workers):
        engine.seen += len(jobs)
        for values in jobs:
            job = Job.from_dict(values)
            cells = []
            for part in job.parts:
                final = job.stage == "final"
                cells.append(
                    CellResult(
                        job.base, job.task, part.arm, job.learning_rate, job.seed, job.stage,
                        train_loss=1.0, eval_loss=loss_of(job),
                        metrics={"strict_accuracy": 0.5, "answer_accuracy": 0.5} if final else {},
                        items={"strict": (0.0, 1.0), "answer": (0.0, 1.0)} if final else {},
                    ).to_dict()
                )  # fmt: skip
            yield values, {"cells": cells}

    engine.seen = 0
    return engine


@pytest.fixture(scope="module")
def finished(llama_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid") / "run"
    plan = make_plan(values(llama_base, folder))
    events = []
    results = Grid(plan).run(in_this_process, tell=events.append)
    return folder, plan, results, events


def test_every_planned_cell_is_measured_and_the_report_is_there(finished):
    folder, _, results, events = finished
    assert len(results.cells) == results.planned == 3 * 2 + 4 * 2 + 1
    assert events[-1].done == events[-1].planned == results.planned
    assert {"report.html", "report.md", "report.json", "cells.jsonl"} <= {path.name for path in folder.iterdir()}
    assert len((folder / "cells.jsonl").read_text().splitlines()) == results.planned
    assert not any((folder / "runs").iterdir())  # nothing of it is needed any more


def test_a_sweep_never_sees_the_test_set_and_decides_the_rate(finished):
    _, _, results, _ = finished
    for arm in ("adapter", "lora", "no-circuit"):
        sweep = results.select("tiny", "sums", arm, "sweep")
        assert [cell.metrics for cell in sweep] == [{}, {}]
        best = min(sweep, key=lambda cell: cell.eval_loss).learning_rate
        final = results.select("tiny", "sums", arm, "final")
        assert [(cell.learning_rate, cell.seed) for cell in final] == [(best, 0), (best, 1)]
        assert all(len(cell.items["strict"]) == 4 and len(cell.losses) == 2 for cell in final)


def test_what_is_evaluated_otherwise_shares_the_training(finished):
    _, _, results, _ = finished
    trained = results.select("tiny", "sums", "adapter", "final")
    off = results.select("tiny", "sums", "branch-zero", "final")
    assert [cell.losses for cell in trained] == [cell.losses for cell in off]
    assert all(one.eval_loss != other.eval_loss for one, other in zip(trained, off, strict=True))


def test_accounting_counts_what_was_trained(finished):
    _, _, results, _ = finished
    with_circuit = results.select("tiny", "sums", "adapter", "final")[0].accounting
    without = results.select("tiny", "sums", "no-circuit", "final")[0].accounting
    assert with_circuit.angles == 2 * 8  # two layers of the model, 4 r angles each
    assert with_circuit.trainable - without.trainable == with_circuit.angles + 2 * 2 * 2  # and W_q
    assert with_circuit.circuits > 0 == without.circuits
    assert with_circuit.flops > without.flops > 0
    assert with_circuit.adapter_bytes > without.adapter_bytes


def test_a_finished_comparison_runs_nothing_again(finished):
    folder, plan, results, _ = finished

    def no_engine(jobs, work, n_workers):
        raise AssertionError(jobs)

    assert Grid(plan).run(no_engine).cells == results.cells
    assert read_grid(folder).run(no_engine).cells == results.cells


def test_a_stopped_comparison_ends_as_one_that_was_not(finished, llama_base, tmp_path):
    _, _, results, _ = finished
    plan = make_plan(values(llama_base, tmp_path / "run"))

    def stops(jobs, work, n_workers):
        for number, job in enumerate(jobs):
            if number == 4:
                raise KeyboardInterrupt
            yield job, work(job)

    with pytest.raises(KeyboardInterrupt):
        Grid(plan).run(stops)
    partly = read_grid(tmp_path / "run").report()
    assert len(partly.cells) == 4
    again = Grid(plan).run(in_this_process)
    for one, other in zip(results.cells, again.cells, strict=True):
        assert one.arm == other.arm
        assert (one.losses, one.eval_loss, one.items) == (other.losses, other.eval_loss, other.items)


def test_a_changed_plan_is_refused_with_the_difference(finished, llama_base):
    folder, _, _, _ = finished
    with pytest.raises(InputError, match=r"margin: was None, now 0.05.*reuse"):
        Grid(make_plan(values(llama_base, folder, margin=0.05)))


def test_finished_cells_of_another_comparison_are_taken_over(finished, llama_base, tmp_path):
    folder, _, results, _ = finished
    for number, source in enumerate((folder, folder / "cells.jsonl")):
        wider = values(
            llama_base, tmp_path / str(number), reuse=[str(source)], seeds={"sweep": [9], "final": [0, 1, 2]}
        )
        engine = invented(lambda job: 1.0)
        more = Grid(make_plan(wider)).run(engine)
        assert engine.seen == 3  # the third seed of three arms
        assert len(more.cells) == len(results.cells) + 4  # and of the arm that is evaluated otherwise


def test_only_what_is_not_measured_yet_is_asked_for(finished, llama_base, tmp_path):
    folder, plan, _, _ = finished
    arms = [*plan.arms, {"name": "branch-off-again", "of": "adapter", "branch": "mean"}]
    wider = make_plan(values(llama_base, tmp_path / "run", arms=arms, reuse=[str(folder)]))
    asked = []

    def engine(jobs, work, n_workers):
        asked.extend(part["name"] for job in jobs for part in job["parts"])
        yield from invented(lambda job: 1.0)(jobs, work, n_workers)

    Grid(wider).run(engine)
    assert len(asked) == 2
    assert all("branch-off-again" in name for name in asked)


def test_reuse_that_is_nothing_is_refused(llama_base, tmp_path):
    with pytest.raises(InputError, match="reuse names"):
        Grid(make_plan(values(llama_base, tmp_path / "run", reuse=[str(tmp_path / "nowhere")])))
    (tmp_path / "text.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="line 1"):
        Grid(make_plan(values(llama_base, tmp_path / "run", reuse=[str(tmp_path / "text.jsonl")])))


def test_a_damaged_cell_is_measured_again(llama_base, tmp_path):
    plan = make_plan(values(llama_base, tmp_path / "run"))
    Grid(plan).run(invented(lambda job: job.learning_rate))
    damaged = sorted((tmp_path / "run" / "cells").glob("*-sweep.json"))[0]
    damaged.write_text(damaged.read_text()[:40])
    engine = invented(lambda job: job.learning_rate)
    Grid(plan).run(engine)
    assert engine.seen == 1
    assert json.loads(damaged.read_text())["stage"] == "sweep"


def test_a_best_rate_at_an_edge_asks_for_a_further_one(llama_base, tmp_path):
    plan = make_plan(values(llama_base, tmp_path / "run", extend_rates=2, arms=["adapter", "lora"]))
    # the adapter's best lies two points beyond the grid, LoRA's at its lower edge
    best = {"adapter": 1.0, "lora": 1e-3}
    results = Grid(plan).run(invented(lambda job: abs(job.learning_rate - best[job.arm])))
    rates = {arm: [cell.learning_rate for cell in results.select("tiny", "sums", arm, "sweep")] for arm in best}
    assert rates["adapter"] == [1e-3, 1e-2, 0.1, 1.0]
    assert rates["lora"] == [1e-4, 1e-3, 1e-2]
    assert {cell.learning_rate for cell in results.select("tiny", "sums", "adapter", "final")} == {1.0}
    assert results.planned == len(results.cells) == 4 + 3 + 2 * 2


def test_a_diverged_cell_is_kept_marked_and_not_chosen(llama_base, tmp_path):
    plan = make_plan(
        values(llama_base, tmp_path / "run", arms=["lora"], learning_rates=[1e-3, 1e30], training={"max_steps": 4})
    )
    results = Grid(plan).run(in_this_process)
    sweep = results.select("tiny", "sums", "lora", "sweep", done=False)
    assert [cell.status for cell in sweep] == ["done", "diverged"]
    assert sweep[1].reason
    assert sweep[1].eval_loss is None
    assert {cell.learning_rate for cell in results.select("tiny", "sums", "lora", "final")} == {1e-3}
    assert "diverged" in (tmp_path / "run" / "report.md").read_text()


def test_an_arm_that_diverges_at_every_rate_ends_with_its_sweep(llama_base, tmp_path):
    plan = make_plan(
        values(llama_base, tmp_path / "run", arms=["lora"], learning_rates=[1e29, 1e30], training={"max_steps": 4})
    )
    results = Grid(plan).run(in_this_process)
    assert [cell.status for cell in results.cells] == ["diverged"] * 2
    assert results.planned == 2


def test_a_failed_cell_costs_no_other_one(llama_base, tmp_path):
    plan = make_plan(values(llama_base, tmp_path / "run", learning_rates=[1e-3]))
    good = invented(lambda job: 1.0)

    def breaks(jobs, work, n_workers):
        for values, answer in good(jobs, work, n_workers):
            yield values, RuntimeError("no memory") if values["arm"] == "lora" else answer

    with pytest.raises(QPeftError, match=r"2 of the cells failed.*lora.*no memory"):
        Grid(plan).run(breaks)
    assert {cell.arm for cell in read_grid(tmp_path / "run").results().cells} == set(ARMS) - {"lora"}
    assert {cell.arm for cell in Grid(plan).run(good).cells} == set(ARMS)


def test_two_processes_on_one_comparison_are_refused(llama_base, tmp_path):
    plan = make_plan(values(llama_base, tmp_path / "run"))
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(InputError, match="another process"):
        Grid(plan).run(in_this_process)


def test_a_folder_with_other_things_is_left_alone(llama_base, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="something else"):
        Grid(make_plan(values(llama_base, tmp_path)))
    remove_grid(tmp_path)
    assert (tmp_path / "letter.txt").exists()


def test_a_plan_that_could_not_start_may_be_mended(llama_base, tmp_path):
    with pytest.raises(InputError, match="lorra"):
        Grid(make_plan(values(llama_base, tmp_path / "run", arms=["lorra"]))).run(in_this_process)
    Grid(make_plan(values(llama_base, tmp_path / "run", arms=["lora"]))).run(invented(lambda job: 1.0))


def test_a_job_that_was_killed_after_training_goes_on(llama_base, tmp_path, monkeypatch):
    plan = make_plan(values(llama_base, tmp_path / "run", arms=["adapter"], learning_rates=[1e-2], keep_adapters=True))
    jobs = []

    def first(values, work, n_workers):
        jobs.extend(values)
        yield from ()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Grid(plan).run(first)
    import qpeft.compare.worker as worker

    with monkeypatch.context() as patch:
        patch.setattr(worker, "_measure", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            work(jobs[0])
    patched = work(jobs[0])["cells"][0]
    with monkeypatch.context() as patch:  # kept with the adapter, should the answer not arrive
        patch.setattr(worker, "_measure", lambda *_: pytest.fail("it was measured again"))
        assert work(jobs[0])["cells"][0]["items"] == patched["items"]
    fresh = Job.from_dict({**jobs[0], "recipe": {**jobs[0]["recipe"], "output": str(tmp_path / "fresh")}})
    assert patched["items"] == work(fresh.to_dict())["cells"][0]["items"]
