"""Questions and passages: what a model that knows, or a model that reads, must get."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import tiny_model

from xb_lite.corpora import Passage, Question, load_passages, load_quiz
from xb_lite.dialogues import as_dialogue
from xb_lite.evaluation import capability
from xb_lite.evaluation.capability import capability_rows, passage_losses, quiz
from xb_lite.evaluation.runs import evaluate_subject
from xb_lite.intention.defenses import prompted
from xb_lite.intention.prompts import self_reminder
from xb_lite.judges.gibberish import shuffled_words
from xb_lite.models.likelihood import response_log_probs
from xb_lite.replies.subjects import Subject


def question(*options, answer=0):
    return Question("q", "tests", "test", "Which?", list(options), answer)


@pytest.fixture
def liking(monkeypatch):
    """A model whose log-probabilities of the tokens of a response are those given."""

    def steer(log_probs):
        def answer(_model, _tokenizer, dialogues):
            return [torch.tensor(log_probs[d[-1]["content"]]) for d in dialogues]

        monkeypatch.setattr(capability, "response_log_probs", answer)

    return steer


def test_the_likeliest_option_is_the_answer(liking):
    liking({"one": [-3.0], "two": [-1.0, -1.0], "six": [-9.0, 0.0]})
    questions = [question("one", "two", "six", answer=place) for place in (0, 1, 2)]
    assert quiz(None, None, questions) == [False, True, False]
    assert quiz(None, None, [question("two", "one"), question("six", "one", answer=1)]) == [
        True,
        True,
    ]


def test_long_options_are_not_held_against_a_model(liking):
    liking({"No": [-2.0], "Because of the wind": [-3.0, -1.0, -2.0]})
    # In sum -2 and -6; per character -1 and about -0.3.
    assert quiz(None, None, [question("No", "Because of the wind", answer=1)]) == [True]


def test_a_model_whose_scores_are_no_numbers_knows_nothing(liking):
    liking({"one": [math.nan], "two": [math.nan], "six": [-math.inf]})
    questions = [question("one", "two"), question("one", "two", answer=1), question("six", "one")]
    assert quiz(None, None, questions) == [False] * 3


def test_an_option_is_scored_after_what_was_asked(monkeypatch):
    seen = []

    def answer(_model, _tokenizer, dialogues):
        seen.extend(dialogues)
        return [torch.tensor([-1.0]) for _ in dialogues]

    monkeypatch.setattr(capability, "response_log_probs", answer)
    before = [*as_dialogue("Be careful."), *as_dialogue("Which?")]
    quiz(None, None, [question("one", "two")], [before])
    assert seen == [[*before, {"role": "assistant", "content": o}] for o in ("one", "two")]


def test_a_refused_question_is_not_answered_right(liking):
    liking({"one": [-1.0], "two": [-2.0], "A text.": [-3.0, -1.0]})
    questions = [question("one", "two"), question("one", "two")]
    assert quiz(None, None, questions, [None, as_dialogue("Which?")]) == [False, True]
    passages = [Passage("p", "tests", "test", "Why?", "A text.")] * 2
    assert passage_losses(None, None, passages, [as_dialogue("Why?"), None]) == [2.0]
    with pytest.raises(ValueError):
        quiz(None, None, questions, [None])


def test_what_the_assistant_said_before_does_not_count(tokenizer):
    model = tiny_model(tokenizer)
    passages = load_passages("test")[:2]
    before = [
        [*as_dialogue("What is the intention?", "To learn something."), *as_dialogue(p.request)]
        for p in passages
    ]
    with torch.no_grad():
        losses = passage_losses(model, tokenizer, passages, before)
    for passage, dialogue, loss in zip(passages, before, losses, strict=True):
        whole = [*dialogue, {"role": "assistant", "content": passage.text}]
        (p,) = response_log_probs(model, tokenizer, [whole])
        n = len(response_log_probs(model, tokenizer, [as_dialogue("x", passage.text)])[0])
        assert n < len(p) and loss == pytest.approx(-float(p[-n:].mean()))


def test_no_questions_no_answers(default_model):
    assert quiz(*default_model, []) == [] and passage_losses(*default_model, []) == []


def test_a_model_that_is_steered_to_an_option_answers_it(tokenizer):
    model = tiny_model(tokenizer)
    asked = question("Silver", "A brown bear", "Under water", "Seven")
    for place, option in enumerate(asked.options):
        ids = [*tokenizer(option)["input_ids"], tokenizer.eos_token_id]

        def favor(_module, _inputs, logits, ids=ids):
            logits[..., ids] += 90
            return logits

        handle = model.get_output_embeddings().register_forward_hook(favor)
        try:
            found = quiz(model, tokenizer, [replace(asked, answer=i) for i in range(4)])
        finally:
            handle.remove()
        assert found == [i == place for i in range(4)]


def test_the_default_model_knows_something_and_always_the_same(default_model):
    questions = load_quiz("validation")
    found = quiz(*default_model, questions[:5])
    assert len(questions) == 10 and len(found) == 5 and sum(found) > 0
    assert quiz(*default_model, questions[2:0:-1])[::-1] == found[1:3]


def test_passages_are_likelier_than_their_words_in_another_order(default_model):
    passages = load_passages("validation")[:2]
    losses = passage_losses(*default_model, passages)
    shuffled = passage_losses(
        *default_model, [replace(p, text=shuffled_words(p.text, seed=0)) for p in passages]
    )
    assert all(0 < loss < other for loss, other in zip(losses, shuffled, strict=True))


def test_a_loss_is_the_mean_over_tokens(liking):
    passage = load_passages("validation")[0]
    liking({passage.text: [-1.0, -2.0, -6.0]})
    assert passage_losses(None, None, [passage]) == [3.0]


def test_behind_a_prompt_capability_is_read_after_it(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "xb_lite.evaluation.capability.quiz", lambda *given: seen.append(given[-1]) or [True]
    )
    monkeypatch.setattr(
        "xb_lite.evaluation.capability.passage_losses", lambda *given: seen.append(given[-1]) or []
    )
    bare = Subject("x", "x", None, model=object())
    for subject, asked in (
        (bare, as_dialogue),
        (prompted(bare, "self-reminder"), lambda q: self_reminder(as_dialogue(q))),
    ):
        rows = capability_rows(subject, "validation")
        assert [row["metric"] for row in rows] == ["accuracy"]  # no passage, no perplexity
        of_quiz, of_passages = seen[-2:]
        assert of_quiz == [asked(q.question) for q in load_quiz("validation")]
        assert of_passages == [asked(p.request) for p in load_passages("validation")]
    assert capability_rows(replace(bare, model=None), "validation") == []


@pytest.mark.parametrize(("losses", "n"), [([1.0, math.nan, 1.0, math.inf], 2), ([math.nan], 0)])
def test_what_is_not_finite_is_left_out_of_perplexity(monkeypatch, losses, n):
    monkeypatch.setattr("xb_lite.evaluation.capability.quiz", lambda *_: [True])
    monkeypatch.setattr("xb_lite.evaluation.capability.passage_losses", lambda *_: losses)
    bare = Subject("x", "x", None, model=object())
    _, *found = capability_rows(bare, "validation")
    assert [(row["n"], row["mean"]) for row in found] == ([(n, math.e)] if n else [])


def test_harness_tasks_see_no_prompt(tmp_path):
    guarded = prompted(Subject("x", "x", None, model=object()), "ia")
    with pytest.raises(ValueError, match="behind a server or a prompt"):
        evaluate_subject(guarded, [], None, None, tmp_path, tasks=["hellaswag"])
