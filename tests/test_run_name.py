"""Names of flow runs that a person finds again in Prefect and MLflow, and the machine that an error names."""

import platform
import re

import pytest
from prefect.utilities.names import generate_slug

from tunewright.errors import DataError
from tunewright.flows.run_name import is_random, naming_machine


def test_a_name_that_prefect_made_up_is_told_from_one_that_a_person_typed() -> None:
    assert all(is_random(generate_slug(2)) for _ in range(500))
    assert is_random("Refined-Saola")  # of the form, which is filled in before anybody types
    assert not any(
        map(
            is_random, ("Small-rank", "Rank-Eight", "my-trial", "demo", "lurking-puffin-2", "demo 2026-11-27 14:05", "")
        )
    )


def test_an_error_of_a_worker_says_which_machine_its_paths_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"^/data/rows.jsonl line 3: no answer$"), naming_machine():
        raise DataError("/data/rows.jsonl line 3: no answer")
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "0c5a")
    said = re.escape(f"/data/rows.jsonl line 3: no answer (on {platform.node()})")
    with pytest.raises(DataError, match=f"^{said}$") as found, naming_machine():
        raise DataError("/data/rows.jsonl line 3: no answer", see=("quarantine.parquet",))
    assert found.value.see == ("quarantine.parquet",)
