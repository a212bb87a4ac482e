"""infra/: each file is what the program that reads it accepts, and the services run a pipeline as processes."""

import asyncio
import importlib.util
import json
import os
import re
import shutil
import ssl
import subprocess
import threading
import tomllib
import uuid
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import psutil
import pytest
import s3fs
import waiting
import yaml
from conftest import make_tiny_base
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime, TrainerV1alpha1TrainJob
from make_team_servers import HOST, INFRA, USER, TeamServers, copied, is_healthy, need, services_of, team_servers
from packaging.requirements import Requirement
from prefect.client.schemas.objects import FlowRun
from prefect_kubernetes.settings import KubernetesSettings
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration
from test_flow import ROWS

from tunewright.store import shared
from tunewright.store.manifest import files_in
from tunewright.store.shared import shared_store

PREFECT = """#!/usr/bin/env bash
# As Prefect's worker: once it is stopped, it kills the run that it started.
echo "$@" > arguments
export PREFECT__FLOW_RUN_ID=1
setsid bash -c 'trap "sleep 0.5; touch saved; exit" TERM; touch runs; while :; do sleep 0.1; done' &
unset PREFECT__FLOW_RUN_ID
run=$!
trap 'kill -9 $run 2> /dev/null && touch killed; exit' INT
trap 'kill -INT $$' TERM
wait $run
wait $run
sleep 60 &
wait
"""
SECRET_MADE = re.compile(
    r"^kubectl create secret generic (\S+) ((?:.*\\\n)*.*)$", re.MULTILINE
)  # of docs/team-servers.md
SECRETS = ("POSTGRES_PASSWORD", "STORAGE_PASSWORD", "PREFECT_AUTH", "MLFLOW_PASSWORD", "MLFLOW_SECRET_KEY")


def contents_of(infra: Path) -> dict[Path, bytes]:
    """All files in it, by their paths."""
    return {file: file.read_bytes() for file in infra.rglob("*") if file.is_file()}


def test_docker_compose_reads_the_services_and_each_password_is_another_one(tmp_path: Path) -> None:
    infra = copied(tmp_path)
    secrets = dict(line.split("=", 1) for line in (infra / ".env").read_text().splitlines())
    assert set(secrets) == {*SECRETS, "TUNEWRIGHT_HOST"} and len(set(secrets.values())) == len(secrets)
    assert (infra / ".env").stat().st_mode & 0o077 == 0
    assert (infra / "certificates" / "host.key").stat().st_mode & 0o077 == 0
    services = services_of(infra)
    published = {name for name, service in services.items() if service.get("ports")}
    assert published == {"proxy"}, "the others are reached through the proxy alone"
    for name, service in services.items():
        assert re.fullmatch(r"[\w/]+:[\w.]+", service["image"]), "an image has a version"
        if service["image"].startswith("tunewright:"):
            assert service["cap_drop"] == ["ALL"], name
        assert ("healthcheck" in service) == (name not in {"bucket", "backup"}), "these two end by themselves"
    gpu = subprocess.run(
        ["docker-compose", "-f", "compose.yaml", "-f", "compose.gpu.yaml", "config", "--format", "json"],
        cwd=infra,
        capture_output=True,
        check=True,
    )
    worker = json.loads(gpu.stdout)["services"]["worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert int(worker["shm_size"]) == 8 * 2**30


@pytest.mark.parametrize(("answer", "healthy"), [(200, True), (503, False)])
def test_a_health_check_goes_by_the_answer(answer: int, healthy: bool) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [str(INFRA / "is-healthy"), f"http://127.0.0.1:{server.server_port}/health"]
        assert is_healthy(command) == healthy
        server.shutdown()
    assert not is_healthy(command), "nobody listens"
    for call in ([INFRA / "is-healthy"], command, [INFRA / "is-healthy", "health"]):
        failed = subprocess.run(call, capture_output=True, text=True)
        assert failed.returncode == 1 and len(failed.stderr.splitlines()) == 1, failed.stderr


def test_the_image_has_extras_and_a_torch_of_the_project() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", (INFRA / "Dockerfile").read_text(), re.MULTILINE))
    project = tomllib.loads((INFRA.parent / "pyproject.toml").read_text())["project"]
    assert {*arguments["EXTRAS"].split(",")} <= {*project["optional-dependencies"]}
    needed = {each.name: each.specifier for each in map(Requirement, project["dependencies"])}
    assert arguments["TORCH_VERSION"] in needed["torch"]
    (user,) = re.findall(r"^USER (.*)$", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    assert int(user) == job_of()["spec"]["template"]["spec"]["securityContext"]["runAsUser"], (
        "by a name, Kubernetes does not know that it is not root"
    )


def test_names_and_passwords_are_made_once_and_compose_says_where_they_are_missing(tmp_path: Path) -> None:
    infra = copied(tmp_path)
    before = contents_of(infra)
    again = subprocess.run([infra / "make-env", HOST.upper()], capture_output=True, text=True, check=True)
    assert "is there already" in again.stdout
    assert before == contents_of(infra)
    authority = (infra / "certificates" / "ca.crt").read_bytes()
    (infra / "certificates" / "host.crt").unlink()
    subprocess.run([infra / "make-env", HOST], check=True, capture_output=True)
    assert (infra / "certificates" / "ca.crt").read_bytes() == authority, "whoever trusts it need not trust another"
    (infra / ".env").unlink()
    need("docker-compose")
    missing = subprocess.run(["docker-compose", "config", "-q"], cwd=infra, capture_output=True, text=True)
    assert missing.returncode and "run infra/make-env first" in missing.stderr


def test_make_env_writes_nothing_before_it_has_checked_its_argument(tmp_path: Path) -> None:
    infra = tmp_path / "infra"
    shutil.copytree(INFRA, infra)
    before = contents_of(infra)

    def says(*arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
        call = [infra / "make-env", *arguments]
        said = subprocess.run(call, capture_output=True, text=True, env=os.environ | {"PATH": path})
        assert contents_of(infra) == before and len((said.stdout + said.stderr).splitlines()) == 1
        return said

    for wrong in ("https://x", "localhost", "300.1.1.1", "1.2.3", "a..b", "a.1", "::1", "2001:db8::1", "a" * 64, ""):
        refused = says(wrong)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"error: {wrong}: accepted: the DNS name or IPv4 address under which")
    for arguments in ((), ("my", "host")):
        refused = says(*arguments)
        assert refused.returncode == 2 and refused.stderr.startswith(f"error: {len(arguments)} arguments; usage: ")
    asked = says("--help")
    assert asked.returncode == 0 and asked.stdout.startswith("usage: infra/make-env HOST")
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or "")
    refused = says(HOST, path=str(tmp_path / "bin"))
    assert refused.returncode == 2 and refused.stderr.startswith("error: openssl is not installed")


def test_make_env_names_the_certificate_that_is_missing(tmp_path: Path) -> None:
    infra = copied(tmp_path)
    certificates = infra / "certificates"

    def refused(at: str) -> None:
        before = contents_of(infra)
        call = subprocess.run([infra / "make-env", HOST], capture_output=True, text=True)
        assert call.returncode == 2 and call.stderr.startswith(f"error: infra/certificates/{at} is missing")
        assert len(call.stderr.splitlines()) == 1 and contents_of(infra) == before

    (certificates / "ca.crt").unlink()
    refused("ca.crt")
    (certificates / "host.key").unlink()
    refused("host.key")
    (certificates / "host.crt").unlink()
    refused("ca.crt")


def test_a_certificate_is_for_a_name_longer_than_a_common_name_may_be(tmp_path: Path) -> None:
    shutil.copytree(INFRA, tmp_path / "infra")
    host = f"{'a' * 60}.example.com"
    subprocess.run([tmp_path / "infra" / "make-env", host], check=True, capture_output=True)
    verify = ["openssl", "verify", "-CAfile", "ca.crt", "-verify_hostname", host, "host.crt"]
    assert subprocess.run(verify, cwd=tmp_path / "infra" / "certificates", capture_output=True).returncode == 0


def test_the_name_changes_only_as_make_env_says_and_a_refusal_changes_nothing(tmp_path: Path) -> None:
    infra, other = copied(tmp_path), "other.example"
    certificates = infra / "certificates"

    def refused(at: str) -> None:
        before = contents_of(infra)
        call = subprocess.run([infra / "make-env", other], capture_output=True, text=True)
        assert call.returncode == 2 and call.stderr.startswith(f"error: {at}")
        assert "remove infra/authority and infra/certificates/host.crt" in call.stderr
        assert contents_of(infra) == before

    certificate = (certificates / "host.crt").read_bytes()
    refused(f"infra/.env names {HOST}, not {other}. To change the name, set TUNEWRIGHT_HOST={other} in infra/.env")
    (certificates / "host.crt").unlink()
    refused("infra/.env names")
    (infra / ".env").write_text((infra / ".env").read_text().replace(HOST, other))
    refused("infra/authority signs for another host alone")
    (certificates / "host.crt").write_bytes(certificate)
    refused("infra/certificates/host.crt names another host")

    shutil.rmtree(infra / "authority")
    (certificates / "host.crt").unlink()
    subprocess.run([infra / "make-env", other], check=True, capture_output=True)
    verify = ["openssl", "verify", "-CAfile", "ca.crt", "-verify_hostname", other, "host.crt"]
    assert subprocess.run(verify, cwd=certificates, capture_output=True).returncode == 0


def test_caddy_reads_its_file(tmp_path: Path) -> None:
    need("caddy")
    infra = copied(tmp_path)
    environment = {"TUNEWRIGHT_HOST": HOST, "PREFECT": "a:1", "MLFLOW": "b:2", "CERTIFICATES": f"{infra}/certificates"}
    command = ["caddy", "validate", "--config", "Caddyfile"]
    path = {"PATH": "/usr/bin:/usr/local/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=infra, env=environment | path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def job_of(**variables: Any) -> dict[str, Any]:
    """The Kubernetes job that Prefect's worker makes of the template."""
    template = json.loads((INFRA / "kubernetes" / "job-template.json").read_text())
    no_server: Any = object()
    made = KubernetesWorkerJobConfiguration.from_template_and_values(template, variables, client=no_server)
    configuration = asyncio.run(made)
    configuration.prepare_for_flow_run(FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name="triage 2026"))
    return configuration.job_manifest


def test_prefect_s_kubernetes_worker_makes_a_valid_job_of_the_template() -> None:
    job = job_of(gpus=2, env={"MLFLOW_TRACKING_URI": "https://models.example"}, node_selector={"gpu": "h100"})
    pod = job["spec"]["template"]["spec"]
    for needless in ("completions", "parallelism"):  # of the job; Prefect asks for them here
        pod.pop(needless)
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert {"name": "MLFLOW_TRACKING_URI", "value": "https://models.example"} in container["env"]
    assert {"name": "PREFECT_API_SSL_CERT_FILE", "value": "/certificates/ca.crt"} in container["env"]
    assert (pod["terminationGracePeriodSeconds"], pod["nodeSelector"]) == (60, {"gpu": "h100"})
    assert pod["securityContext"]["runAsNonRoot"]


def test_the_train_job_of_several_nodes_is_valid_and_each_pod_knows_its_part(tmp_path: Path) -> None:
    runtime, job = yaml.safe_load_all((INFRA / "kubernetes" / "train-job.yaml").read_text())
    for document, kind in ((runtime, TrainerV1alpha1TrainingRuntime), (job, TrainerV1alpha1TrainJob)):
        read = kind.from_dict(document)
        assert read and read.to_dict() == document, "a field that the schema does not have is left out"
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    as_job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": runtime["metadata"], "spec": spec}
    kubernetes_validate.validate(as_job, kubernetes_validate.latest_version(), strict=True)
    of_template = job_of()["spec"]["template"]["spec"]
    pod = spec["template"]["spec"]
    assert [each for each in of_template["volumes"] if each not in pod["volumes"]] == []
    assert pod["securityContext"] == of_template["securityContext"]
    memory = {"name": "memory", "mountPath": "/dev/shm"}
    for each in (pod, of_template):
        assert memory in each["containers"][0]["volumeMounts"], "NCCL needs more than the 64 MB of a container"

    for name, line in {"getent": "", "tunewright": 'echo "$@" "$TUNEWRIGHT_RENDEZVOUS"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (container,) = pod["containers"]
    given = {each["name"]: each["value"] for each in job["spec"]["trainer"]["env"]}
    given |= {"PET_MASTER_ADDR": "first", "PET_MASTER_PORT": "29400", "PET_NNODES": "2"}
    given["PATH"] = f"{tmp_path}:/usr/bin:/bin"
    pipeline = "run /pipelines/support-bot.yaml --set compute.nodes=2 --set compute.devices=8"
    for rank, command in (("0", pipeline), ("1", "join")):
        environment = {**given, "PET_NODE_RANK": rank}
        said = subprocess.run(container["command"], env=environment, stdout=subprocess.PIPE, text=True, check=True)
        assert said.stdout == f"{command} first:29400\n"


def test_only_pods_of_train_jobs_reach_each_other() -> None:
    policy = yaml.safe_load((INFRA / "kubernetes" / "network-policy.yaml").read_text())
    kubernetes_validate.validate(policy, kubernetes_validate.latest_version(), strict=True)
    runtime, _ = yaml.safe_load_all((INFRA / "kubernetes" / "train-job.yaml").read_text())
    assert policy["metadata"]["namespace"] == runtime["metadata"]["namespace"]
    spec = policy["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["ingress"] == [{"from": [{"podSelector": spec["podSelector"]}]}], "all ports, and nobody else"


def test_what_the_jobs_need_in_a_cluster_is_valid_and_named_as_in_the_template() -> None:
    documents: list[dict[str, Any]] = list(yaml.safe_load_all((INFRA / "kubernetes" / "namespace.yaml").read_text()))
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    job, volumes = job_of(), job_of()["spec"]["template"]["spec"]["volumes"]
    names = {(document["kind"], document["metadata"]["name"]) for document in documents}
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume}
    claimed = {("PersistentVolumeClaim", claim) for claim in claims}
    assert names == {("Namespace", job["metadata"]["namespace"])} | claimed


def test_the_values_of_the_charts_fit_versions_services_and_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: INFRA / "kubernetes" / f"{name}.yaml" for name in ("prefect-server", "prefect-worker", "mlflow")}
    server, worker, mlflow = (yaml.safe_load(file.read_text()) for file in files.values())
    prefect = re.search(r"^prefect==(.*)$", (INFRA.parent / "constraints.txt").read_text(), re.MULTILINE)
    assert prefect
    assert server["global"]["prefect"]["image"]["prefectTag"] == f"{prefect[1]}-python3.11"
    assert worker["worker"]["image"]["prefectTag"] == f"{prefect[1]}-python3.11-kubernetes"

    page = (INFRA.parent / "docs" / "team-servers.md").read_text()
    made = {name: set(re.findall(r"--from-literal=([\w-]+)=", keys)) for name, keys in SECRET_MADE.findall(page)}
    store = mlflow["artifactRoot"]["s3"]["existingSecret"]
    database = mlflow["backendStore"]["existingDatabaseSecret"]
    assert made["tunewright-prefect"] == {"auth-string", "connection-string"}  # as the charts call them
    assert server["server"]["basicAuth"]["existingSecret"] == server["secret"]["name"] == "tunewright-prefect"
    assert worker["worker"]["selfHostedServerApiConfig"]["basicAuth"]["existingSecret"] == "tunewright-prefect"
    assert made[store["name"]] >= {store["keyOfAccessKeyId"], store["keyOfSecretAccessKey"]}
    assert made[database["name"]] >= {database["usernameKey"], database["passwordKey"]}
    (secret,) = mlflow["extraSecretNamesForEnvFrom"]
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]["mlflow"]
    assert made[secret] >= {name for name in compose["environment"] if name.startswith("MLFLOW_AUTH_ADMIN")}

    options = {f"--{re.sub('[A-Z]', lambda c: '-' + c[0].lower(), name)}" for name in mlflow["extraArgs"]}
    assert options <= {*map(str, compose["command"])}, "the server is started as in compose.yaml"
    (mount,) = mlflow["extraVolumeMounts"]
    assert Path(mlflow["extraEnvVars"]["MLFLOW_AUTH_CONFIG_PATH"]).parent == Path(mount["mountPath"])
    pod = {
        "securityContext": mlflow["podSecurityContext"],
        "containers": [
            {
                "name": "mlflow",
                "env": [
                    *server["global"]["prefect"]["env"],
                    *server["server"]["env"],
                    *worker["worker"]["extraEnvVars"],
                ],
                "securityContext": mlflow["securityContext"],
                "volumeMounts": mlflow["extraVolumeMounts"],
            }
        ],
        "volumes": mlflow["extraVolumes"],
    }
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "all"}, "spec": pod}
    kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)
    for each in worker["worker"]["extraEnvVars"]:
        monkeypatch.setenv(each["name"], each["value"])
    read = KubernetesSettings().worker
    assert (read.api_auth_string_secret_name, read.api_auth_string_secret_key) == ("tunewright-prefect", "auth-string")


@pytest.fixture
def backup(s3: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch) -> Any:
    """infra/backup.py as a module, without databases; TUNEWRIGHT_STORE is as in compose.yaml, and empty."""
    spec = importlib.util.spec_from_file_location("backup", INFRA / "backup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    s3.mkdir(module.BUCKET)
    monkeypatch.setattr(module, "DATABASES", ())
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    monkeypatch.setenv("TUNEWRIGHT_STORE", services["worker"]["environment"]["TUNEWRIGHT_STORE"])
    shared._opened.cache_clear()
    return module


def put(folder: Path, at: str, text: str) -> Path:
    """Put a folder of one file into the shared store; returns the file."""
    file = folder / at / "rows.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    store = shared_store()
    assert store
    store.put(at, file.parent, files_in(file.parent, but=()))
    return file


def test_a_back_up_is_whole_although_runs_change_and_remove_files_meanwhile(
    backup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = shared_store()
    assert store
    for at in ("artifacts/rows/a", "artifacts/train/b", "work/train/c", "work/train/d"):
        put(tmp_path, at, f"first {at}")
    for name in ("histories/test_set_uses/tiny.jsonl/0000000001", "leases/work/train/c/0000000001"):
        store._write(name, b"1")
    store._write("trees/artifacts/rows/lost.json", b'{"rows.jsonl": {"sha256": "gone", "size": 1}}')
    store._write("trees/artifacts/rows/damaged.json", b"{")
    copied: set[str] = set()
    get_file = s3fs.S3FileSystem.get_file

    def meanwhile(self: s3fs.S3FileSystem, file: str, to: str) -> None:
        if "/trees/" in file and not copied:
            put(tmp_path, "artifacts/score/late", "late")
        if "/apart/work/train/c/" in file and file not in copied:
            put(tmp_path, "work/train/c", "second")
        if "/apart/work/train/d/" in file:
            store.remove("work/train/d")
        if file.endswith("/content/old"):
            store.remove_content("old")
        copied.add(file)
        get_file(self, file, to)

    store._write("content/old", b"of no tree")
    monkeypatch.setattr(s3fs.S3FileSystem, "get_file", meanwhile)
    backup.save(tmp_path / "copy")

    copy = shared.SharedStore("TUNEWRIGHT_STORE", str(tmp_path / "copy" / "store" / "store"))
    trees = [name.removesuffix(".json") for name in copy.objects("trees")]
    assert sorted(trees) == ["artifacts/rows/a", "artifacts/train/b", "work/train/c"]
    for at in trees:
        assert copy.get(at, tmp_path / "got" / at), f"{at} is whole"
    assert (tmp_path / "got" / "work/train/c/rows.jsonl").read_text() == "second"
    assert copy.objects("histories") and not copy.objects("leases")


def make_pipeline(folder: Path, repository: Path) -> None:
    """A deployment file of a tiny training, for the work pool of compose.yaml's worker; and a Git repository of it."""
    need("git")
    folder.mkdir()
    make_tiny_base(folder / "base")
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    parameters = {
        "data": {"sources": [{"path": "rows.jsonl"}]},
        "model": {"base": "base", "max_length": 128},
        "method": {"rank": 2, "alpha": 4},
        "training": {"learning_rate": 1e-3, "max_steps": 20, "batch": 4, "evaluate_every": 20, "patience": None},
        "compute": {"threads": 1},
        "evaluation": {"max_new_tokens": 4, "contenders": [], "forgetting": False},
        "gate": {"metric": "perplexity", "confidence": 0.8, "approval": True},
        "operation": {"watch": 86_400},
    }
    deployment = {"name": "tiny", "entrypoint": "tunewright.flows.finetune.finetune", "parameters": parameters}
    deployment["work_pool"] = {"name": "tunewright"}
    deployment["pull"] = [{"prefect.deployments.steps.git_clone": {"repository": repository.as_uri()}}]
    (folder / "tiny.yaml").write_text(yaml.safe_dump({"deployments": [deployment]}))
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=tiny")
    git(folder, "clone", "--quiet", "--bare", folder, repository)


def git(folder: Path, *command: str | Path) -> None:
    """Call git in a folder."""
    name = ("-c", "user.name=ana", "-c", "user.email=ana@team.example")
    subprocess.run(["git", *name, *command], cwd=folder, check=True)


def trusting(servers: TeamServers) -> ssl.SSLContext:
    """A context that trusts the team's authority."""
    return ssl.create_default_context(cafile=str(servers.authority))


def add_user(servers: TeamServers, name: str, password: str) -> None:
    """Add a user of MLflow, as its administrator does."""
    uri, own = servers.terminal["MLFLOW_TRACKING_URI"], servers.terminal["MLFLOW_TRACKING_PASSWORD"]
    added = httpx.post(
        f"{uri}/api/2.0/mlflow/users/create",
        json={"username": name, "password": password},
        auth=("admin", own),
        verify=trusting(servers),
    )
    added.raise_for_status()


def test_a_worker_that_is_stopped_lets_its_runs_save_first(tmp_path: Path) -> None:
    (tmp_path / "prefect").write_text(PREFECT)
    (tmp_path / "prefect").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    command = [INFRA / "worker", "--pool", "tunewright"]
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PATH": path}) as worker:
        waiting.until((tmp_path / "runs").exists)
        worker.terminate()
    assert (tmp_path / "arguments").read_text() == "worker start --pool tunewright\n"
    assert (tmp_path / "saved").exists() and not (tmp_path / "killed").exists()


def history(servers: TeamServers) -> dict[str, Any]:
    """The output of `release history` without links, whose ports are of these servers."""
    said = servers.tunewright("release", "history", "tiny", "--json")
    return json.loads(re.sub(rf"https://{re.escape(HOST)}:\d+/", "", said))


def planned(servers: TeamServers, folder: Path) -> list[tuple[str, ...]]:
    """Each stage that `plan` shows in a folder, its state, and why it would run.

    What changed beside that is told from artifacts of the home, which no back-up has.
    """
    stages = json.loads(servers.tunewright("plan", "tiny.yaml", "--json", folder=folder))["stages"]
    return [(each["stage"], each.get("of", ""), each["state"], *each.get("because", [])[:1]) for each in stages]


TRAINING = {"learning_rate": 1e-3, "max_steps": 600, "batch": 4, "evaluate_every": 100, "patience": None}


def adapter_of(home: Path) -> str:
    """The digest of the weights that TRAINING led to."""
    records = [json.loads(file.read_text())["record"] for file in home.glob("artifacts/train/*/manifest.json")]
    return next(record["digest"] for record in records if record["steps"] == TRAINING["max_steps"])


def a_second_machine_shares_the_store(servers: TeamServers) -> None:
    """Its home is empty: nothing is made again, and a training in which it is killed goes on at a third machine.

    The weights are those of a training that nothing disturbed, and the uses of the test rows are counted together. The
    base is in its clone no more, so it comes from the store.
    """
    with_base = servers.folder.parent / "desktop"
    git(with_base, "rm", "--quiet", "-r", "--cached", "base")
    git(with_base, "commit", "--quiet", "--message=without the base")
    git(with_base, "push", "--quiet")

    def start(*arguments: str) -> str:
        given = ("deployment", "run", "finetune/tiny", f"--param=training={json.dumps(TRAINING)}", *arguments)
        return servers.call("prefect", *given)

    secret = servers.tools["AWS_SECRET_ACCESS_KEY"]
    store = s3fs.S3FileSystem(endpoint_url=servers.storage, key=USER, secret=secret, use_listings_cache=False)
    with servers.worker("second") as second:
        assert "'Unchanged'" in servers.call("prefect", "deployment", "run", "watch/tiny", "--watch")
        assert "'Unchanged'" in servers.call("prefect", "deployment", "run", "finetune/tiny", "--watch")
        said = servers.log_of("second").read_text()
        assert "11 of 12 tasks cached" in said, "all but the look at the base"
        assert "model.base=base is not on this machine" in said
        start()
        waiting.until(lambda: store.find("tunewright/store/trees/work/train"), every=0.5)
        for each in [*psutil.Process(second.pid).children(recursive=True), second]:
            each.kill()
    with servers.worker("third"):
        assert "'Waiting'" in start("--watch")
    assert re.search(r"another machine trained \d00 steps; this one goes on", servers.log_of("third").read_text())
    alone = {**servers.terminal, "TUNEWRIGHT_HOME": str(servers.folder / "alone-home")}
    del alone["TUNEWRIGHT_STORE"]
    sets = [f"--set=training.{name}={'' if value is None else value}" for name, value in TRAINING.items()]
    replace(servers, terminal=alone).tunewright("run", "tiny.yaml", "--until=train", *sets, folder=with_base)
    assert adapter_of(servers.home_of("third")) == adapter_of(servers.folder / "alone-home")
    uses = (servers.home_of("third") / "test_set_uses" / "tiny.jsonl").read_text().splitlines()
    assert len({json.loads(line)["candidate"] for line in uses}) == 2


def promoted_and_rolled_back_from_two_machines(servers: TeamServers, clone: Path) -> None:
    """Each loads versions that others registered: a clone promotes the second one, and an empty home takes it back.

    Where the empty home is there is no base.
    """
    reason = ("--reason", "longer training")
    servers.tunewright("release", "approve", "tiny", *reason, folder=clone)
    elsewhere = replace(servers, terminal={**servers.terminal, "TUNEWRIGHT_HOME": str(servers.folder / "empty-home")})
    said = elsewhere.tunewright("release", "rollback", "tiny", "--reason", "answers worse", folder=servers.folder)
    assert "version 1" in said and list((servers.folder / "empty-home" / "artifacts" / "bases").iterdir())


def served_from_an_empty_home(servers: TeamServers) -> None:
    """The champion comes from MLflow over TLS, by the login of the terminal, and its base from the store."""
    with servers.serving("tiny", "a-key-of-sixteen-characters") as url:
        question = {"model": "tiny", "messages": [{"role": "user", "content": "where is my parcel?"}]}
        login = {"Authorization": "Bearer a-key-of-sixteen-characters"}
        answer = httpx.post(f"{url}/v1/chat/completions", json=question, headers=login, timeout=60).raise_for_status()
    assert answer.json()["choices"][0]["finish_reason"] in ("stop", "length")
    assert "tiny@1" in servers.log_of("serve").read_text()


def test_a_pipeline_runs_on_a_team_s_servers_and_what_is_restored_says_the_same(tmp_path: Path) -> None:
    with team_servers(tmp_path / "servers") as servers:
        make_pipeline(tmp_path / "laptop", tmp_path / "team.git")
        with servers.worker():
            servers.tunewright("deploy", "tiny.yaml", folder=tmp_path / "laptop")
            shutil.rmtree(tmp_path / "laptop")
            assert "'Waiting'" in servers.call("prefect", "deployment", "run", "finetune/tiny", "--watch")
            waiting.until(
                lambda: (
                    "Flow run 'approve tiny 1' - Finished in state Suspended" in servers.log_of("worker").read_text()
                )
            )
            subprocess.run(["git", "clone", "--quiet", tmp_path / "team.git", tmp_path / "desktop"], check=True)
            reason = ("--reason", "from another clone, which has the base")
            servers.tunewright("release", "approve", "tiny", *reason, folder=tmp_path / "desktop")
        a_second_machine_shares_the_store(servers)
        promoted_and_rolled_back_from_two_machines(servers, tmp_path / "desktop")
        served_from_an_empty_home(servers)
        assert (
            "<html"
            in httpx.get(servers.terminal["PREFECT_API_URL"].removesuffix("/api"), verify=trusting(servers)).text
        )
        found = servers.tunewright("doctor")
        for server in ("Prefect", "MLflow"):
            assert re.search(rf"^ok +{server} +https://{HOST}:\d+(/api)? answers", found, re.MULTILINE)
        before, stages = history(servers), planned(servers, tmp_path / "desktop")
        servers.backup("save", tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_mode & 0o077 == 0, "it has answers to test rows, and hashes of passwords"
    passwords = tmp_path / "servers" / "infra" / ".env"
    with team_servers(tmp_path / "restored", tmp_path / "copy", passwords) as servers:
        assert history(servers) == before
        assert planned(servers, tmp_path / "desktop") == stages
        assert [event["what"] for event in before["events"]] == ["rolled back", "approved", "approved"]
        assert not before["waiting"]
        assert "Unchanged" in servers.tunewright("run", "tiny.yaml", folder=tmp_path / "desktop"), (
            "the same splits, weights and champion"
        )
        add_user(servers, "ana", "a password of hers")
        hers = {"MLFLOW_TRACKING_USERNAME": "ana", "MLFLOW_TRACKING_PASSWORD": "a password of hers"}
        servers = replace(servers, terminal={**servers.terminal, **hers})
        assert "no version" in servers.tunewright(
            "release", "withdraw", "tiny", "--reason", "a user who is no administrator"
        )
        assert history(servers)["events"][0]["by"] == "ana", "who was logged in at MLflow, and not this system's user"
