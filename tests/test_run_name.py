"""Names of flow runs that a person finds again in Prefect and MLflow."""

from prefect.utilities.names import generate_slug

from tunewright.flows.run_name import is_random


def test_a_name_that_prefect_made_up_is_told_from_one_that_a_person_typed() -> None:
    assert all(is_random(generate_slug(2)) for _ in range(500))
    assert is_random("Refined-Saola")  # of the form, which is filled in before anybody types
    assert not any(
        map(
            is_random, ("Small-rank", "Rank-Eight", "my-trial", "demo", "lurking-puffin-2", "demo 2026-11-27 14:05", "")
        )
    )
