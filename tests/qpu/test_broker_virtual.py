"""The broker on the virtual chip: equal results however often a run is stopped, with and without its state folder."""

import pytest
import torch

from qpeft.chips import load_chip
from qpeft.chips.compiler import compile_circuit
from qpeft.circuits import qtha_block
from qpeft.errors import Interrupted
from qpeft.qpu.broker import Broker
from qpeft.qpu.ledger import Ledger
from qpeft.qpu.protocol import Block
from qpeft.qpu.providers.virtual import VirtualProvider
from qpeft.qpu.reading import LedgerReader
from qpeft.qpu.schema import State


@pytest.fixture(scope="module")
def work():
    """A compiled circuit and 450 rows of angles: three jobs."""
    chip = load_chip("wukong-72-ideal")
    circuit = qtha_block(2, 1)
    template = compile_circuit(circuit, chip, (0, 1))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(450, circuit.n_inputs, generator=generator, dtype=torch.float64)
    weights = torch.rand(circuit.n_weights, generator=generator, dtype=torch.float64)
    return template, [(Block(0, tuple(row)),) for row in template.angles(inputs, weights).tolist()]


class Stopping(VirtualProvider):
    """Ctrl-C at the second job, after it was taken."""

    jobs = 0

    def submit(self, submission):
        self.jobs += 1
        job = super().submit(submission)
        if self.jobs == 2:
            raise KeyboardInterrupt
        return job


def run(provider, folder, work, seed=0):
    template, circuits = work
    with Broker(provider, folder) as broker:
        return broker.run([template], circuits, 200, purpose="forward", seed=seed)


def flat(counts):
    return torch.stack([block for blocks in counts for block in blocks])


@pytest.mark.parametrize("keeps", [True, False], ids=["state folder", "in memory"])
def test_a_stopped_run_gives_what_it_would_have_given(tmp_path, work, keeps):
    calm = run(VirtualProvider("wukong-72-ideal"), tmp_path / "calm", work)
    settings = {"state": str(tmp_path / "chip")} if keeps else {}
    with pytest.raises(Interrupted):
        run(Stopping("wukong-72-ideal", **settings), tmp_path / "run", work)
    provider = VirtualProvider("wukong-72-ideal", **settings)
    assert torch.equal(flat(run(provider, tmp_path / "run", work)), flat(calm))
    with LedgerReader(tmp_path / "run") as reader:
        states = [job.state for job in reader.jobs()]
    assert states.count(State.DONE) == 3
    assert (len(states) == 3) == keeps  # what was lost with the process was run again


def test_jobs_that_ended_with_a_simulator_are_run_again(tmp_path, work):
    class Slow(VirtualProvider):
        def poll(self, job):
            raise KeyboardInterrupt

    calm = run(VirtualProvider("wukong-72-ideal"), tmp_path / "calm", work)
    with pytest.raises(Interrupted):
        run(Slow("wukong-72-ideal"), tmp_path / "run", work)
    assert torch.equal(flat(run(VirtualProvider("wukong-72-ideal"), tmp_path / "run", work)), flat(calm))


def test_seeds_are_part_of_the_question(tmp_path, work):
    template, circuits = work
    with Ledger(tmp_path) as ledger, Broker(VirtualProvider("wukong-72-ideal"), ledger) as broker:
        one, other, same = (
            flat(broker.run([template], circuits[:50], 200, purpose="forward", seed=seed)) for seed in (1, 2, 1)
        )
    assert not torch.equal(one, other)
    assert not torch.equal(one, same)  # asked for a second time: shots of its own
    assert (one.double().mean(0) - other.double().mean(0)).abs().max() < 5.0
