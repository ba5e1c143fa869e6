"""A small adapter that teaches both stages of Intention Analysis, on benign requests alone.

Small models answer the second stage as the first one told them to: they state the intention again.
Here they see an answer follow an intention, in their weights and not in the prompt. That a model
can be fine-tuned to state intentions first is Intent-FT's idea (arXiv 2508.12072), which trains on
adversarial requests; items and loss are ours. No harmful request is among them, and no verdict, so
the adapter learns the format alone.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from xb_lite.intention.examples import benign
from xb_lite.losses.batch import Pair
from xb_lite.recipes import Baseline, RecipeError
from xb_lite.training.baselines import RefusalTuning
from xb_lite.training.draw import draw_pairs
from xb_lite.training.sets import Sets


def draw(recipe: Baseline, sets: Sets, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[Pair]:
    """All pairs of a run, in the order of training: a benign request with its intention and its
    answer, both of which are learned, and one to keep, by the recipe's shares.

    Raises:
        RecipeError: a set that the recipe needs is empty, or it asks for dialogues, of which the
            last exchange alone would be learned.
        ValueError: an item cannot be encoded.
    """
    if recipe.multi_turn_share:
        raise RecipeError(
            f"multi_turn_share is {recipe.multi_turn_share}; it must be 0: of a dialogue the last "
            "exchange alone is learned, and the intention is stated before it."
        )
    return draw_pairs(recipe, sets.having("written", harmful=benign()), tokenizer, seed)


class IntentionTuning(RefusalTuning):
    """An intention and an answer behind the two prompts, and to all others what the model said
    before.

    Minimises ``stages + weight * drift``: the mean negative log-likelihood of the tokens of both
    replies, and the drift of ``RefusalTuning``.
    """

    term_names = ("stages", "drift")
