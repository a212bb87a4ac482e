"""The process of `tunewright api`: a port, the jobs of this home, and the models that they have made."""

from collections.abc import Mapping
from contextlib import ExitStack

from starlette.types import ASGIApp

from tunewright import config
from tunewright.cli.api.app import FineTuningApi
from tunewright.cli.api.files import StoredFiles
from tunewright.cli.api.jobs import JobStore
from tunewright.cli.api.models import FineTunedModels
from tunewright.cli.api.running import JobRunner
from tunewright.cli.api.template import Template
from tunewright.cli.serve import key
from tunewright.cli.serve.app import create_app
from tunewright.cli.serve.queue import Tell
from tunewright.cli.serve.server import Listening, Stoppable, listen
from tunewright.config import outside
from tunewright.errors import ConfigError
from tunewright.store import locks

FOLDER = "api"  # in the home
LOCK = "server.lock"


class ApiServices:
    """The services behind the paths: the jobs and the models."""

    def __init__(self, runner: JobRunner, models: FineTunedModels) -> None:
        self.runner, self.models = runner, models

    def start(self) -> None:
        """Go on with the jobs."""
        self.runner.start()

    def stop(self) -> None:
        """End the run and the answer at hand."""
        self.runner.stop()
        self.models.stop()

    def close(self) -> None:
        """Wait for both."""
        self.runner.close()
        self.models.close()


def of_runs(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a run in this home, which need not know the key of the API."""
    own = {name: value for name, value in environment.items() if name != key.VARIABLE}
    return own | config.of_home()


def serve(template: Template, environment: Mapping[str, str], at: Listening, tell: Tell) -> None:
    """Serves until Ctrl-C; SIGTERM ends it with KeyboardInterrupt. The job at hand goes on when it is started again.

    `environment` is what the server was started with.
    Raises ConfigError where the port is taken, another server has the jobs of this home, or no job may read there.
    """
    folder = config.home() / FOLDER
    outside.check_path("TUNEWRIGHT_HOME", str(config.home().absolute()))  # each job reads its uploads there
    config.make_home()
    folder.mkdir(mode=0o700, exist_ok=True)

    def opened() -> tuple[Stoppable, ASGIApp, str]:
        files, jobs = StoredFiles(folder / "files", tell), JobStore(folder / "jobs", tell)
        models = FineTunedModels(jobs, template, at.max_waiting, tell)
        runner = JobRunner(jobs, files, template.folder, of_runs(environment), models.release, tell)
        api = FineTuningApi(template, files, jobs, runner)
        said = f"{', '.join(template.bases)} can be fine-tuned"
        return ApiServices(runner, models), create_app(models, at.host, at.api_key, api.routes()), said

    with ExitStack() as held:
        try:
            held.enter_context(locks.exclusive(folder / LOCK, wait=0))
        except BlockingIOError:
            raise ConfigError(f"TUNEWRIGHT_HOME={config.home()}: another tunewright api has the jobs there") from None
        listen(at, opened, tell)
