"""Greedy decoding of questions whose reference answer is known: the answers of plain decoding, in far fewer steps.

As long as a model's likeliest next token is the reference's, its greedy answer is the reference. So one pass over the
prompt and the reference verifies all of the answer that agrees, and gives the reference's likelihood. What follows the
first difference is drafted again, from the reference, the prompt and earlier answers, and verified several tokens at
once. What prompts have in common at their beginning is computed once. Answers that are drawn at random go the same way.
"""

from tunewright.generation.decoding import Greedy
from tunewright.generation.rows import Answer
from tunewright.generation.sampling import Sampling

__all__ = ["Answer", "Greedy", "Sampling"]
