"""Every shipped deployment file is a valid pipeline to us and a valid deployment to Prefect, whose form can show it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.cli.deploy._models import (
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
)
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import construct_schedule
from prefect.events import DeploymentTriggerTypes
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate
from pydantic import TypeAdapter

from tunewright.cli.deployment_file import keys, load
from tunewright.flows.parameters import Parameters

ROOT = Path(__file__).parents[1]
SCHEDULE = {"cron", "interval", "rrule", "timezone", "anchor_date"}
FILES = sorted((ROOT / "deployments").glob("*.yaml"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The JSON schema that Prefect derives from the flow's signature: its form, and its validation of parameters."""
    from tunewright.flows.finetune import finetune

    return parameter_schema(finetune).model_dump()


def deployments(file: Path) -> list[dict[str, Any]]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]


def test_the_demo_is_shipped() -> None:
    assert ROOT / "deployments" / "demo.yaml" in FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_shipped_file_is_a_pipeline(file: Path) -> None:
    for deployment in deployments(file):
        assert load(file, deployment["name"]).name == deployment["name"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_shipped_file_reads_local_data_that_is_shipped_too(file: Path) -> None:
    for deployment in deployments(file):
        for source in load(file, deployment["name"]).settings.data.sources:
            assert list(file.parent.glob(source.path)), source.path


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_prefect_accepts_a_shipped_file_and_reads_the_same_parameters(file: Path, schema: dict[str, Any]) -> None:
    accepted = PrefectYamlModel.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    for deployment in accepted.deployments:
        assert deployment.name
        assert deployment.parameters == load(file, deployment.name).parameters
        validate(deployment.parameters, schema)
        for schedule in deployment.schedules or []:
            assert isinstance(schedule, RawScheduleConfig)
            construct_schedule(**schedule.model_dump(include=SCHEDULE))
        for trigger in deployment.triggers or []:
            TypeAdapter[Any](DeploymentTriggerTypes).validate_python(trigger)


def test_the_keys_that_we_accept_are_those_that_prefect_reads() -> None:
    file_keys = {field.alias or name for name, field in PrefectYamlModel.model_fields.items()}
    assert set(keys.FILE_KEYS) == file_keys | {"definitions", "description", "required_inputs"}
    assert {*keys.DEPLOYMENT_KEYS, "schedule"} == set(DeploymentConfig.model_fields)  # its old name for schedules
    assert set(keys.SCHEDULE_KEYS) == {
        *RawScheduleConfig.model_fields,
        *DeploymentScheduleCreate.model_fields,
    }
    assert set(keys.WORK_POOL_KEYS) == set(WorkPoolConfig.model_fields)
    assert set(keys.CONCURRENCY_KEYS) == set(ConcurrencyLimitSpec.model_fields)


def test_the_flow_takes_what_a_file_can_give(schema: dict[str, Any]) -> None:
    assert set(schema["properties"]) == set(Parameters.model_fields)
    assert set(schema["required"]) == {"data", "model"}
    defaults = Parameters.model_validate({"data": {"sources": [{"path": "a"}]}, "model": {"base": "b"}})
    for name, value in schema["properties"].items():
        if name not in schema["required"]:
            assert value["default"] == defaults.model_dump(mode="json")[name]


def test_the_form_can_show_each_field(schema: dict[str, Any]) -> None:
    for name, section in schema["definitions"].items():
        if section["type"] == "object":
            assert section["description"], name
        for field, shown in section.get("properties", {}).items():
            assert shown["description"], f"{name}.{field}"
            assert "default" in shown or field in section["required"], f"{name}.{field}"
            assert "oneOf" not in shown, f"{name}.{field}"
