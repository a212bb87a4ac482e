"""The machine while a run goes on: processors, memory, disk, network, and GPUs where their driver's library is there.

MLflow's own monitors measure. Its thread that would send them ends for good where MLflow does not answer once.
"""

import contextlib
from typing import Any

from tunewright.registry.candidate import Point

PREFIX = "system/"  # by which MLflow's UI knows them


class SystemMetrics:
    """MLflow's monitors of this machine."""

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self.monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(ImportError, RuntimeError):  # no pynvml, or no GPU
            self.monitors.append(GPUMonitor())
        self.sample(0.0, 0)  # the first one measures no interval

    def sample(self, now: float, step: int) -> list[Point]:
        """The points of this moment."""
        points = []
        for monitor in self.monitors:
            monitor.collect_metrics()
            found = monitor.aggregate_metrics()
            monitor.clear_metrics()
            points += [Point(f"{PREFIX}{name}", float(value), step, now) for name, value in found.items()]
        return points
