"""The corpora are what the data card says: complete, matched, split by pair, without twins."""

import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xb_lite.corpora import (
    KINDS,
    SPLITS,
    STYLES,
    Wrapper,
    load_corpus,
    load_passages,
    load_quiz,
    load_refusals,
    load_scripts,
    load_wrappers,
)
from xb_lite.judges.strings import INTENTION_ANALYSIS, REFUSAL_JUDGES

STOP = set(re.findall(r"\w+", "a an the to of in on for and or my me i is are it with from how do"))


def words(text):
    return frozenset(re.findall(r"[a-z']+", text.lower())) - STOP


def jaccard(a, b):
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_and_ids(kind):
    prompts = load_corpus(kind)
    assert [p.id for p in prompts] == [f"{kind}-{i:03d}" for i in range(1, 121)]
    assert {p.kind for p in prompts} == {kind}
    assert Counter(p.split for p in prompts) == {"train": 60, "validation": 20, "test": 40}
    assert sum(len(load_corpus(kind, split)) for split in SPLITS) == len(prompts)


def test_at_least_ten_harmful_categories_in_every_split():
    for split in SPLITS:
        assert len({p.category for p in load_corpus("harmful", split)}) >= 10


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_edition_begins_with_the_first(kind):
    prompts = load_corpus(kind, edition=2)
    assert prompts[:120] == load_corpus(kind)
    assert [p.id for p in prompts] == [f"{kind}-{i:03d}" for i in range(1, 481)]
    assert {p.kind for p in prompts} == {kind}
    assert Counter(p.split for p in prompts) == {"train": 360, "validation": 40, "test": 80}
    for split in SPLITS:
        assert len({p.category for p in load_corpus(kind, split, edition=2)}) == 15


def test_styles_of_the_second_edition_are_balanced_over_splits_and_shared_by_twins():
    for kind in KINDS:
        new = load_corpus(kind, edition=2)[120:]
        assert Counter(p.style for p in new) == dict.fromkeys(STYLES, 60)
        assert min(Counter(p.style for p in new if p.split == "test").values()) >= 4
        assert {p.register for p in new} == {"formal", "plain", "sloppy"}
        assert sum(p.typos for p in new) == 60
        words_of = sorted(len(p.prompt.split()) for p in new)
        assert words_of[90] <= 10 and words_of[270] >= 20
    for harmful, safe in zip(
        load_corpus("harmful", edition=2), load_corpus("boundary-safe", edition=2), strict=True
    ):
        assert (harmful.style, harmful.register, harmful.typos) == (
            safe.style,
            safe.register,
            safe.typos,
        )


def test_harmless_training_prompts_and_no_others_have_a_short_answer():
    assert not any(p.answer for p in load_corpus("harmful", edition=2))
    for kind in ("boundary-safe", "benign"):
        for prompt in load_corpus(kind, edition=2):
            assert (prompt.answer is not None) == (prompt.split == "train"), prompt.id
            if prompt.answer is not None:
                assert 25 <= len(prompt.answer.split()) <= 60, prompt.id
                assert not INTENTION_ANALYSIS.refuses(prompt.answer[:40]), prompt.answer


def test_twenty_refusals_most_of_which_begin_as_published_lists_expect():
    refusals = [row.text for row in load_refusals()]
    assert len(set(refusals)) == 20
    assert all(8 <= len(text.split()) <= 35 for text in refusals)
    assert len({" ".join(text.split()[:3]) for text in refusals}) >= 15
    assert sum(any(judge.refuses(text) for judge in REFUSAL_JUDGES) for text in refusals) >= 16


def test_pairs_share_number_category_split_and_words():
    for harmful, safe in zip(
        load_corpus("harmful", edition=2), load_corpus("boundary-safe", edition=2), strict=True
    ):
        assert (harmful.pair, harmful.category, harmful.split) == (
            safe.pair,
            safe.category,
            safe.split,
        )
        stems = [{w[:5] for w in words(p.prompt)} for p in (harmful, safe)]
        assert len(stems[0] & stems[1]) >= 2, (harmful.prompt, safe.prompt)


def surface(prompt, openings):
    """Length, punctuation, case and the first word: what no reader needs to understand."""
    text, words_of = prompt.prompt, prompt.prompt.split()
    counts = [text.count(mark) for mark in ",.?'\":\n-"]
    cases = [sum(c.isupper() for c in text), sum(c.isdigit() for c in text)]
    first = [words_of[0].lower() == opening for opening in openings]
    return [len(words_of), len(text), len(text) / len(words_of), *counts, *cases, *first]


def test_a_classifier_on_surface_form_alone_guesses():
    openings = sorted({p.prompt.split()[0].lower() for p in load_corpus("harmful", edition=2)})
    rows, harmful = {}, {}
    for part in ("train", "held out"):
        splits = ("train",) if part == "train" else ("validation", "test")
        some = [
            p
            for kind in ("harmful", "boundary-safe")
            for split in splits
            for p in load_corpus(kind, split, edition=2)
        ]
        rows[part] = np.array([surface(p, openings) for p in some], float)
        harmful[part] = np.array([p.kind == "harmful" for p in some])
    guess = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    right = guess.fit(rows["train"], harmful["train"]).score(rows["held out"], harmful["held out"])
    assert abs(right - 0.5) < 1.96 * 0.5 / len(harmful["held out"]) ** 0.5


@pytest.mark.parametrize("edition", [1, 2])
def test_surface_form_does_not_tell_the_kinds_apart(edition):
    harmful, safe = (load_corpus(kind, edition=edition) for kind in ("harmful", "boundary-safe"))
    n_words = [sum(len(p.prompt.split()) for p in corpus) for corpus in (harmful, safe)]
    assert abs(n_words[0] / n_words[1] - 1) < 0.05
    openings = [Counter(p.prompt.split()[0] for p in corpus) for corpus in (harmful, safe)]
    assert openings[0] == openings[1]
    assert all(h.prompt[-1] == s.prompt[-1] for h, s in zip(harmful, safe, strict=True))


def test_no_near_duplicates_within_or_across_splits():
    requests = [(p.prompt, p.pair) for kind in KINDS for p in load_corpus(kind, edition=2)]
    requests += [(p.request, None) for p in load_passages()]
    bags = [words(request) for request, _ in requests]
    for ((a, pair_a), bag_a), ((b, pair_b), bag_b) in combinations(
        zip(requests, bags, strict=True), 2
    ):
        if pair_a is None or pair_a != pair_b:
            assert jaccard(bag_a, bag_b) < 0.5, (a, b)


def test_unknown_kind_or_split_is_named():
    with pytest.raises(ValueError, match="'borderline'"):
        load_corpus("borderline")
    with pytest.raises(ValueError, match="'dev'"):
        load_corpus("benign", "dev")
    with pytest.raises(ValueError, match="no edition 3"):
        load_corpus("benign", edition=3)


def test_scripts_lead_to_a_harmful_prompt_of_the_same_split():
    harmful = {p.pair: p for p in load_corpus("harmful")}
    scripts = load_scripts()
    assert len(scripts) == 40 and {len(s.turns) for s in scripts} == {4, 5}
    assert set(Counter(s.style for s in scripts).values()) <= {13, 14}
    both = load_scripts(edition=2)
    assert both[:40] == scripts and {len(s.turns) for s in both} == {4, 5}
    assert {s.pair for s in both} == set(range(1, 121)) and len(both) == 120
    assert Counter(s.style for s in both[40:]) == dict.fromkeys({s.style for s in both}, 20)
    assert Counter(s.split for s in both) == {"train": 60, "validation": 20, "test": 40}
    for script in both:
        prompt = harmful[script.pair]
        assert (script.target, script.category, script.split) == (
            prompt.prompt,
            prompt.category,
            prompt.split,
        )


def test_turns_of_scripts_have_no_twins():
    bags = [words(turn) for script in load_scripts(edition=2) for turn in script.turns]
    assert max(jaccard(a, b) for a, b in combinations(bags, 2)) < 0.5


def test_wrappers_hold_the_whole_request():
    wrappers = load_wrappers()
    families = Counter(w.family for w in wrappers)
    assert len(wrappers) == 30 and len(families) >= 6 and min(families.values()) >= 3
    both = load_wrappers(edition=2)
    assert both[:30] == wrappers and len(both) == 60
    by_split = {s: {w.family for w in load_wrappers(s, edition=2)} for s in SPLITS}
    assert len(by_split["test"] - by_split["train"] - by_split["validation"]) >= 3
    for wrapper in both:
        wrapped = wrapper.wrap("alpha beta gamma delta epsilon")
        assert all(word in wrapped for word in ("alpha", "beta", "gamma", "delta", "epsilon"))
        assert "{" not in wrapped


def test_a_request_is_cut_between_words():
    wrapper = Wrapper("x", "payload-splitting", "train", "{first_half}|{second_half}")
    assert wrapper.wrap("one two three") == "one two|three"
    assert wrapper.wrap("one") == "one|"


def test_questions_have_one_answer_each_and_all_places_alike():
    quiz = load_quiz()
    assert len(quiz) == 60 and {len(q.options) for q in quiz} == {4}
    assert all(len(set(q.options)) == 4 for q in quiz)
    assert Counter(q.answer for q in quiz) == {0: 15, 1: 15, 2: 15, 3: 15}


def test_passages_are_short_distinct_and_of_many_subjects():
    passages = load_passages()
    assert [p.id for p in passages] == [f"passage-{i:02d}" for i in range(1, 61)]
    assert Counter(p.split for p in passages) == {"train": 10, "validation": 10, "test": 40}
    assert set(Counter(p.subject for p in passages).values()) == {5}
    assert all(60 <= len(p.text.split()) <= 110 for p in passages)
    assert len({p.subject for p in load_passages("test")}) == 12


def test_texts_of_passages_have_no_twins():
    bags = [words(p.text) for p in load_passages()]
    assert max(jaccard(a, b) for a, b in combinations(bags, 2)) < 0.5


@pytest.mark.parametrize("load", [load_scripts, load_wrappers, load_quiz, load_passages])
def test_every_split_has_items(load):
    assert sum(len(load(split)) for split in SPLITS) == len(load())
    assert all(load(split) for split in SPLITS)
    with pytest.raises(ValueError, match="no split 'dev'"):
        load("dev")
