"""The test rows as a version is asked them that is the base with a prompt: its examples before each question.

The candidate is one with method.kind=few_shot or retrieval, and the champion may be one whatever the candidate is.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunewright.artifacts import Contender, Prepended, Splits, Tokens
from tunewright.errors import ConfigError
from tunewright.modeling.chat import with_examples
from tunewright.serving import EXAMPLES, ExamplePrompt, example_prompt
from tunewright.store.stage import stage
from tunewright.tasks.prompt import Asking, write
from tunewright.tools.conversation import Message, conversation_of

log = logging.getLogger("tunewright")


@dataclass(frozen=True)
class KeptExamples:
    """The examples of a version, as what can stand before a question."""

    prompt: ExamplePrompt

    def ids(self, chosen: Sequence[int]) -> list[str]:
        """The numbers of some of them."""
        return [*map(str, chosen)]

    def before(self, chosen: Sequence[int], messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with some of them before."""
        return with_examples([self.prompt.examples[at] for at in chosen], self.prompt.opening, messages)


@stage("{contender.name}", libraries=("transformers", "tokenizers", "jinja2", "pyarrow"))
def prepend(folder: Path, contender: Contender, splits: Splits, tokens: Tokens) -> Prepended:
    """The test rows with the contender's examples before each, the first of which are left out until there is room.

    Raises ConfigError if there is room for none of a candidate's, DataError where the template cannot write such a
    conversation.
    """
    assert contender.model
    prompt = example_prompt(contender.model)
    assert prompt, f"{contender.name} has no {EXAMPLES}"
    asking = Asking(contender.base, splits, tokens, prompt.room)
    shots = [prompt.chosen(conversation_of(row)) for row in asking.test.to_pylist()]
    written = write(folder / "test.parquet", asking, shots, KeptExamples(prompt))
    is_candidate = contender.name == "candidate"
    if written.has_none and is_candidate:
        raise ConfigError(written.warning(f"method.kind={prompt.kind}", asking, "examples", f"; {asking.more_room}"))
    then = ", as when it is served" + (f"; {asking.more_room}" if is_candidate else "")
    warning = written.warning(contender.name, asking, "examples", then)
    if warning:
        log.warning("prepend: %s", warning)
    shortened = written.num_shortened
    return Prepended(contender=contender.name, num_shortened=shortened, warned=(warning,) if warning else ())
