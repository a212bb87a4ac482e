"""Print the result of `tunewright deploy`: each deployment in words, or one JSON object."""

import shlex
from collections.abc import Iterator
from typing import Any

from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL
from rich.console import Console
from rich.text import Text

from tunewright import config
from tunewright.cli.deploy import Deployed, Result
from tunewright.cli.deploy.automations import NOTIFIED
from tunewright.cli.deploy.removal import CANCELLED, Removed
from tunewright.cli.deploy.server import environment_of, folder
from tunewright.cli.deploy.timing import in_words, next_times
from tunewright.flows.parameters import FLOW, identifier
from tunewright.flows.run_name import is_folder_made_for_run
from tunewright.machine import addresses


def show(console: Console, result: Result) -> None:
    """Print the deployments in words."""
    for each in result.deployed:
        said = f": {', '.join(_news(each))}" if each.state == "updated" else ""
        console.print(Text.assemble((f"{FLOW}/{each.now.name}", "bold"), f"  {each.state}{said}"), soft_wrap=True)
        if each.moved_from:
            console.print(Text(f"  {_moved(each)}", "yellow"), soft_wrap=True)
        for name, text in _lines(each):
            console.print(Text(f"  {name:<10} {text}"), soft_wrap=True)
    for block, error in result.tested.items():
        console.print(_tested(block, error), soft_wrap=True)
    for name in result.others:
        console.print(
            Text(
                f"{FLOW}/{name} also starts in that folder but is not in {result.deployed[0].pipeline.path}; it was "
                f"not changed. This removes it and its automations: tunewright deploy --remove {shlex.quote(name)}",
                "yellow",
            ),
            soft_wrap=True,
        )


def show_removed(console: Console, removed: list[Removed]) -> None:
    """Print what was removed, line by line, and the runs that waited for an answer, which were cancelled."""
    for each in removed:
        done = "cancelled" if each.kind in CANCELLED else "removed"
        console.print(Text(f"{done}: {each.kind} {each.name}"), soft_wrap=True)
    console.print("its runs stay in Prefect, and its models and artifacts in the home")


def as_json(result: Result) -> dict[str, Any]:
    """Return the output of `tunewright deploy --json`."""
    shown: dict[str, Any] = {
        "deployments": [_as_json(each) for each in result.deployed],
        "others": list(result.others),
    }
    if result.tested:
        shown["tested"] = [block for block, error in result.tested.items() if not error]
        shown["not_sent"] = {block: error for block, error in result.tested.items() if error}
    return shown


def _tested(block: str, error: str) -> Text:
    if not error:
        return Text(f"{block}: test message sent")
    advice = "correct the block in Prefect's pages under Blocks"
    return Text(f"{block}: test message not sent: {error.rstrip('.')}; {advice}", "yellow")


def _as_json(deployed: Deployed) -> dict[str, Any]:
    now = deployed.now
    return {
        "name": f"{FLOW}/{now.name}",
        "id": str(now.id),
        "state": deployed.state,
        "changed": list(deployed.changed),
        "automations": deployed.automations._asdict(),
        "schedules": [
            {
                "when": in_words(each.schedule),
                "active": each.active,
                "next": [at.isoformat() for at in next_times(each.schedule)],
            }
            for each in now.schedules
        ],
        "triggers": list(deployed.pipeline.triggers),
        "paused": now.paused,
        "concurrency": now.global_concurrency_limit.limit if now.global_concurrency_limit else None,
        "work_pool": now.work_pool_name,
        "workers": deployed.workers.waiting,
        "operation": deployed.pipeline.settings.operation.model_dump(mode="json"),
        "link": deployed.link,
    }


def _news(deployed: Deployed) -> list[str]:
    """Return the changes to a deployment, its watch and its automations."""
    counted = [(len(names), what) for what, names in deployed.automations._asdict().items() if names]
    watch = ["watch"] if deployed.has_watch_changed else []
    return [*deployed.changed, *watch, *(f"{n} automation{'s'[: n != 1]} {what}" for n, what in counted)]


def _moved(deployed: Deployed) -> str:
    return (
        f"its folder was {deployed.moved_from}, now {folder(deployed.now)}: it replaced the deployment of that folder; "
        "if both shall run, give one another name"
    )


def _lines(deployed: Deployed) -> list[tuple[str, str]]:
    now, operation = deployed.now, deployed.pipeline.settings.operation
    lines = [("schedule", _due(each)) for each in now.schedules] or [("schedule", "none")]
    if now.schedules and deployed.pipeline.schedules is None:
        lines.append(("", "set on the server, not in the file; schedules: [] in the file removes it"))
    if now.paused:
        lines.append(("", f"paused: no schedule {'and no poll ' if operation.watch else ''}starts a run"))
    if deployed.pipeline.triggers:
        lines.append(("triggers", ", ".join(deployed.pipeline.triggers)))
    if operation.watch:
        then = "a run starts" if operation.start_on == "changed" else "they are checked, and a full run starts on drift"
        then = "once it is resumed, the next poll looks for changes" if now.paused else f"when they change, {then}"
        lines.append(("data", f"polled every {operation.watch} s by watch/{identifier(now.name)}; {then}"))
    if operation.notify:
        occasions = ", ".join(NOTIFIED[each] for each in operation.notify_on)
        lines.append(("notifies", f"{', '.join(operation.notify)} of {occasions}"))
    if deployed.pipeline.settings.gate.approval:
        lines.append(("approval", f"requested by approval/{deployed.pipeline.settings.registry.name}"))
    return [*lines, *_place(deployed), ("limit", _limit(now)), ("link", deployed.link)]


def _place(deployed: Deployed) -> Iterator[tuple[str, str]]:
    """Where runs take place: the work pool, and the folder where that is not simply the one of the file."""
    yield "work pool", _pool(deployed)
    now, pull = deployed.now, deployed.pipeline.pull
    if pull is not None:
        yield "folder", folder(now) or "as the work pool has it"
        if is_folder_made_for_run(now) and not {"TUNEWRIGHT_HOME", "TUNEWRIGHT_STORE"} & {*(environment_of(now) or ())}:
            yield "", "made for each run: workers need TUNEWRIGHT_HOME, a folder that is kept, or TUNEWRIGHT_STORE"
    elif deployed.pool_type != "process":
        yield "folder", f"{folder(now)}, on the machine or in the container of the run; pull: in the file sets another"


def _due(scheduled: Any) -> str:
    when = in_words(scheduled.schedule)
    if not scheduled.active:
        return f"{when}, inactive"
    return f"{when}; next {', '.join(f'{at:%a %d %b %H:%M}' for at in next_times(scheduled.schedule))}"


def _pool(deployed: Deployed) -> str:
    pool, (count, seconds) = deployed.now.work_pool_name or "", deployed.workers
    said = "" if seconds is None else f"{seconds:.0f} s ago"
    waiting = f"{count} worker{'s'[: count != 1]} waiting for runs, by a heartbeat {said}"
    if not count:
        none = f"the last heartbeat of a worker was {said}, so it may have ended" if said else "no worker is running"
        waiting = f"{none}; start one{_start_of_worker(pool, is_elsewhere=deployed.pipeline.pull is not None)}"
    return f"{pool}{', just created' if deployed.is_pool_new else ''}; {waiting}"


def _start_of_worker(pool: str, *, is_elsewhere: bool) -> str:
    """Return the command that starts a worker of the pool, for this home or elsewhere, and which secrets it needs."""
    server = addresses.for_prefect(PREFECT_API_URL.value())
    secrets = {"PREFECT_API_AUTH_STRING": PREFECT_API_AUTH_STRING, "PREFECT_API_KEY": PREFECT_API_KEY}
    needed = [name for name, setting in secrets.items() if setting.value() and f"{name}=" not in server]
    needs = f", with {' and '.join(needed)} set as for this command" if needed else ""
    home = "" if is_elsewhere else "".join(f"{name}={shlex.quote(at)} " for name, at in config.of_home().items())
    return f"{needs}: {home}{server} prefect worker start --pool {shlex.quote(pool)}"


def _limit(deployment: Any) -> str:
    limit, options = deployment.global_concurrency_limit, deployment.concurrency_options
    if limit is None:
        return "none; trainings on one device run one at a time"
    is_cancelled = options is not None and options.collision_strategy.value == "CANCEL_NEW"
    return f"{limit.limit} run{'s'[: limit.limit != 1]} at a time; others {'are cancelled' if is_cancelled else 'wait'}"
