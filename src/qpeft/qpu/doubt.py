"""Jobs of which nobody knows whether the vendor took them: looked up, or risked, or left to the user.

A vendor that can be asked for a job by its token decides the case. Where it cannot be asked, sending again may pay
twice and not sending may lose what was paid, so that is for the user to say, or for a policy with a cap.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from qpeft.qpu.budget import Spend
from qpeft.qpu.desk import Desk
from qpeft.qpu.protocol import ProviderError
from qpeft.qpu.reading import Job
from qpeft.qpu.schema import State


def settle(desk: Desk, job: Job, expected: Spend, say: Callable[[str], None]) -> Job:
    """Find out about an UNKNOWN job, or take the risk that the policy allows.

    Args:
        desk: Of the job's provider.
        job: The job.
        expected: What it may have cost.
        say: Told where something may be paid twice.

    Returns:
        The job: SUBMITTED, NOT_TAKEN or ABANDONED.

    Raises:
        ProviderError: None of these is possible: the user has to decide.
    """
    if desk.caps.finds:
        return look_up(desk, job)
    if not desk.caps.paid:
        return desk.ledger.move(job, State.ABANDONED, "sent again: it costs nothing")
    command = f"qpeft qpu resolve {desk.ledger.folder} {job.id}"
    policy = desk.policy
    if policy.on_unknown == "resubmit" and policy.risk is not None:
        excess = policy.risk.excess(desk.ledger.spent(desk.name, State.ABANDONED) + expected)
        if excess is None:
            say(
                f"nobody knows whether {desk.name} took job {job.id} ({len(job.positions)} circuits, token "
                f"{job.token}): it is sent again, as the policy allows, and may be paid twice."
            )
            return desk.ledger.move(job, State.ABANDONED, "may be paid twice: sent again as the policy allows")
        command += f" (what may be paid twice would come to {excess})"
    raise ProviderError(
        f"nobody knows whether {desk.name} took job {job.id} of {len(job.positions)} circuits ({job.note}; token "
        f"{job.token}). Look at the vendor's list of your jobs, then settle it with --lost or --job-id ID: {command}"
    )


def look_up(desk: Desk, job: Job) -> Job:
    """Ask the vendor for a job by its token: SUBMITTED or NOT_TAKEN.

    A request may still be on its way, so where money is at stake "there is none" has to be said twice.
    """
    for pause in (desk.policy.settle, 0.0) if desk.caps.paid else (0.0,):
        found = _find(desk, job)
        if found is not None:
            return desk.ledger.move(job, State.SUBMITTED, f"found by its token as {found}", vendor_id=found)
        time.sleep(pause)
    desk.wait = 0.0
    return desk.ledger.move(job, State.NOT_TAKEN, "the vendor has no job with its token")


def _find(desk: Desk, job: Job) -> str | None:
    while True:
        try:
            found = desk.find(job)
        except ProviderError as error:
            if desk.silences.failed():
                raise ProviderError(
                    f"{desk.name} cannot say whether it took job {job.id} ({error}): nothing more was sent; start "
                    "the same command again later."
                ) from error
            time.sleep(desk.policy.wait_after(desk.silences.count, None))
            continue
        desk.silences.worked()
        return found
