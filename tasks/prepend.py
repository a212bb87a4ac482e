"""The test rows as a version is asked them that is the base with a few-shot prompt: its examples before each question.

The candidate is one with method.kind=few_shot, and the champion may be one whatever the candidate is.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunewright.artifacts import Contender, Prepended, Splits, Tokens
from tunewright.modeling.chat import with_examples
from tunewright.serving import EXAMPLES, FewShotPrompt, few_shot_prompt
from tunewright.store.stage import stage
from tunewright.tasks.prompt import Asking, write
from tunewright.tools.conversation import Message

log = logging.getLogger("tunewright")


@dataclass(frozen=True)
class KeptExamples:
    """The examples of a version, as what can stand before a question."""

    prompt: FewShotPrompt

    def ids(self, chosen: Sequence[int]) -> list[str]:
        """The numbers of some of them."""
        return [*map(str, chosen)]

    def before(self, chosen: Sequence[int], messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with some of them before."""
        return with_examples([self.prompt.examples[at] for at in chosen], self.prompt.opening, messages)


@stage("{contender.name}", libraries=("transformers", "tokenizers", "jinja2", "pyarrow"))
def prepend(folder: Path, contender: Contender, splits: Splits, tokens: Tokens) -> Prepended:
    """The test rows with the contender's examples before each, the first of which are left out until there is room.

    Raises DataError where the template cannot write such a conversation.
    """
    assert contender.model
    prompt = few_shot_prompt(contender.model)
    assert prompt, f"{contender.name} has no {EXAMPLES}"
    asking = Asking(contender.base, splits, tokens, prompt.room)
    shots = [[*range(len(prompt.examples))]] * len(asking.test)
    num_shortened = write(folder / "test.parquet", asking, shots, KeptExamples(prompt))["num_shortened"]
    warned: tuple[str, ...] = ()
    if num_shortened:
        warned = (
            f"{contender.name}: {num_shortened:,} of {len(asking.test):,} test prompts have fewer examples than "
            "chosen, since the base's context has no room for more; a served version leaves them out likewise",
        )
        log.warning("prepend: %s", warned[0])
    return Prepended(contender=contender.name, num_shortened=num_shortened, warned=warned)
