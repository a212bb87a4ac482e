"""What is worth a look without being a reason to quarantine a row."""

from collections.abc import Sequence

from data_checks.columns import Turn, prompt_and_answer


def conflicting_answers(conversations: Sequence[list[Turn]]) -> list[list[int]]:
    """For each prompt that is answered in more than one way, the positions of its rows, one for each answer."""
    by_prompt: dict[tuple[tuple[str | None, str | None], ...], dict[str | None, int]] = {}
    for position, turns in enumerate(conversations):
        prompt, answer = prompt_and_answer(turns)
        if prompt and answer:
            key = tuple((turn["role"], turn["content"]) for turn in prompt)
            by_prompt.setdefault(key, {}).setdefault(answer["content"], position)
    return [list(answers.values()) for answers in by_prompt.values() if len(answers) > 1]
