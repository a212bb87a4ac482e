"""Runs that an earlier `tunewright up` left in a state that is not theirs any more, since nobody could say so.

When the machine went down, or all was killed at once, the database has them as running. The worker of this pool on this
machine is about to start, so none of them lives.
"""

import httpx

from tasks.addresses import Addresses

SECONDS = 30.0
UNFINISHED = ["RUNNING", "PENDING", "CANCELLING"]
CRASHED = {"type": "CRASHED", "message": "tunewright was killed while it ran; it goes on from there when it runs again"}
CANCELLED = {"type": "CANCELLED", "message": "tunewright was killed before it could cancel it"}


def end(addresses: Addresses) -> list[str]:
    """Marks the unfinished runs of the pool as crashed, or cancelled if that was asked, and returns their names."""
    with httpx.Client(base_url=addresses.api, timeout=SECONDS) as server:
        wanted = {
            "flow_runs": {"state": {"type": {"any_": UNFINISHED}}},
            "work_pools": {"name": {"any_": [addresses.pool]}},
        }
        found = server.post("/flow_runs/filter", json=wanted).raise_for_status().json()
        for run in found:
            body = {"state": CANCELLED if run["state"]["type"] == "CANCELLING" else CRASHED, "force": True}
            server.post(f"/flow_runs/{run['id']}/set_state", json=body).raise_for_status()
    return [run["name"] for run in found]
