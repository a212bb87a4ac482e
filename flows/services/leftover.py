"""Runs that an earlier `tunewright up` left in a state that is not theirs any more, since nobody could say so.

When the machine went down, or all was killed at once, the database has them as running. The worker of this pool on this
machine is about to start, so none of them lives.
"""

from collections.abc import Iterable

import httpx

from tasks.addresses import Addresses

SECONDS = 30.0
UNFINISHED = ["RUNNING", "PENDING", "CANCELLING"]
CRASHED = {"type": "CRASHED", "message": "tunewright was killed while it ran; it goes on from there when it runs again"}


def unfinished(addresses: Addresses) -> dict[str, str]:
    """The runs of the pool that stand as unfinished, by their id; to be called before a worker starts any."""
    wanted = {
        "flow_runs": {"state": {"type": {"any_": UNFINISHED}}},
        "work_pools": {"name": {"any_": [addresses.pool]}},
    }
    with httpx.Client(base_url=addresses.api, timeout=SECONDS) as server:
        found = server.post("/flow_runs/filter", json=wanted).raise_for_status().json()
    return {run["id"]: run["name"] for run in found}


def crash(addresses: Addresses, runs: Iterable[str]) -> None:
    """Marks runs as crashed; to be called when the server is up for a while, since its automations begin after it."""
    with httpx.Client(base_url=addresses.api, timeout=SECONDS) as server:
        for run in runs:
            body = {"state": CRASHED, "force": True}
            server.post(f"/flow_runs/{run}/set_state", json=body).raise_for_status()
