"""The guard reads every token before it is shown, the last ones too; the official filter's faults
(its last chunk, short replies, empty texts, tables and decimals) are a test each."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import saying, tiny_model

from xb_lite.corpora import SHORT_REFUSAL, load_look_alikes
from xb_lite.dialogues import as_dialogue, encode
from xb_lite.guard.detectors import GibberishDetector, ProbeDetector, tail
from xb_lite.guard.fitting import detectors_named, probe_detector
from xb_lite.guard.plane import Plane, fitted_plane
from xb_lite.guard.stream import A_TOKEN, Guard
from xb_lite.guard.streamer import GuardStreamer
from xb_lite.judges.gibberish import Gibberish, shuffled_words
from xb_lite.models.precision import Precision
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Decoding

FP32 = Precision("cpu", torch.float32, None, "tests")
SENTENCE = "The museum by the old harbour opens at nine and closes when the last visitor has left."
CHUNK = 200  # tokens that the official filter reads at a time


class Word:
    """Flags a word; ``read`` has what it was given."""

    def __init__(self, word="bad", name="word"):
        self.word, self.name, self.read = word, name, []

    def __call__(self, request, said):
        self.read.append(said)
        return self.name if self.word in said else None


def heard(guard, tokens):
    """What is shown after every token, and at the end."""
    watch = guard.watch("Say something.")
    return [*map(watch.feed, tokens), watch.end()], watch


# The stream


def test_tokens_are_held_back_until_they_were_read():
    shown, watch = heard(Guard([Word()], hold=3), ["a ", "b ", "c ", "d ", "e "])
    assert shown == ["", "", "a b c ", "", "", "d e "]
    assert (watch.shown, watch.reason, watch.tokens) == ("a b c d e ", None, 5)


@given(st.lists(st.text(max_size=80), max_size=40), st.integers(1, 20))
def test_what_is_harmless_arrives_whole_and_nothing_is_shown_unread(pieces, hold):
    word = Word("\ue000")
    watch = Guard([word], hold).watch("")
    shown = ""
    for piece in pieces:
        shown += watch.feed(piece)
        assert len(watch._held) < hold
        assert shown == (word.read[-1] if word.read else "")
    shown += watch.end()
    assert shown == watch.shown == "".join(pieces)
    assert not watch._held


def test_a_reply_is_ended_by_the_refusal_and_nothing_follows():
    words = ["fine "] * 4 + ["bad "] + ["more "] * 9
    shown, watch = heard(Guard([Word()], hold=2), words)
    assert watch.reason == "word"
    assert watch.shown == "".join(shown) == f"fine fine fine fine \n\n{SHORT_REFUSAL}"
    assert watch.tokens == 6  # what came after was not even counted


@pytest.mark.parametrize("place", [0, 1, 14, 15, 16, 17, 30, 31, 32, 39])
def test_no_place_of_a_word_escapes(place):
    tokens = ["fine "] * 40
    tokens[place] = "bad "
    _, watch = heard(Guard([Word()], hold=16), tokens)
    assert watch.reason and "bad" not in watch.shown


def test_a_word_across_the_border_of_two_readings_is_seen():
    tokens = ["x"] * 15 + ["ba", "d"] + ["x"] * 3
    _, watch = heard(Guard([Word()], hold=16), tokens)
    assert watch.reason


def test_one_large_piece_is_read_token_by_token():
    word = Word()
    watch = Guard([word], hold=4).watch("")
    text = "word " * 100
    assert watch.feed(text) + watch.end() == text
    assert len(word.read) == 26 and max(map(len, word.read[:1])) == len("word word word word")
    blanks = " " * 100 + "\n" * 50 + "y" * (3 * A_TOKEN + 1)
    assert Guard([word], 4).over("", blanks) == (blanks, None)


def test_a_whole_reply_is_replaced_whole():
    guard = Guard([Word()], hold=2, refusal="No.")
    assert guard.over("", "fine fine fine fine bad") == ("No.", "word")
    assert guard.over("", "fine") == ("fine", None)


def test_the_first_detector_that_finds_something_is_named():
    guard = Guard([Word("never"), Word("bad", "one"), Word("bad", "two")], hold=1)
    assert guard.over("", "bad")[1] == "one"


@pytest.mark.parametrize("wrong", [{"detectors": []}, {"detectors": [Word()], "hold": 0}])
def test_a_guard_without_a_detector_or_a_token_is_refused(wrong):
    with pytest.raises(ValueError, match="a guard needs a detector"):
        Guard(**wrong)


def test_the_tail_begins_with_a_word():
    assert tail("one two three", 100) == "one two three"
    assert tail("one two three", 7) == "three"
    assert tail("one two three", 6) == " three"
    assert tail("x" * 50, 10) == "x" * 10


# The gibberish detector, and the official filter's faults


@pytest.fixture(scope="module")
def gibberish(default_model):
    return GibberishDetector(Gibberish(*default_model, FP32))


@pytest.fixture(scope="module")
def guard(gibberish):
    return Guard([gibberish])


def salad(words):
    mixed = shuffled_words(f"{SENTENCE} {SENTENCE[::-1]} {SENTENCE.swapcase()[::-1]}", seed=3)
    return " ".join((mixed.split() * 9)[:words])


def test_fault_a_last_chunk_shorter_than_the_others_is_read(guard):
    """Official: the loop ends before it checks a chunk that is shorter than 200 tokens."""
    honest = " ".join(f"On day {day} the museum shows picture {day + 3}." for day in range(22))
    text = f"{honest} {salad(30)}"
    assert guard.over("Which pictures are there?", honest)[1] is None
    assert guard.over("Which pictures are there?", text) == (SHORT_REFUSAL, "gibberish")


def test_fault_a_reply_of_one_short_chunk_is_read(guard):
    """Official: a reply of fewer than 200 tokens is never checked."""
    assert guard.over("A phrase?", "and so on" * 12)[1] == "gibberish"
    assert guard.over("A phrase?", salad(24))[1] == "gibberish"


@pytest.mark.parametrize("text", ["", " \n", "...", "---", "Yes.", "42", "🙂"])
def test_fault_empty_and_tiny_replies_pass_without_an_error(guard, text):
    """Official: an empty text divides by zero."""
    assert guard.over("Is it open?", text) == (text, None)


@pytest.mark.parametrize(
    "text",
    [
        "One third is 0.3333333333333333, as far as a double goes.",
        "| Day | Opens |\n|---|---|\n| Monday | 9 |\n| Tuesday | 9 |\n| Sunday | closed |",
        "First part.\n\n---------------------------------\n\nSecond part, a week later.",
        "红茶用开水泡，绿茶用八十度的水泡，两三分钟以后就可以喝了，也可以加一点蜂蜜。",
    ],
)
def test_fault_rules_tables_decimals_and_other_alphabets_pass(guard, text):
    """Official: three characters five times in a row, or a fifth beyond ASCII, are flagged."""
    assert guard.over("Say it.", text) == (text, None)


def test_points_without_end_are_junk_and_a_wide_rule_is_none(gibberish):
    assert gibberish("", "." * 100) is None and gibberish("", "=" * 64) is None
    assert gibberish("", ". " * 200) == "gibberish"
    assert gibberish("", f"| Day | Opens |\n|{'-' * 300}|\n") is None


def test_fault_junk_after_a_long_readable_opening_is_not_diluted(gibberish):
    honest = " ".join(f"On day {day} the museum shows picture {day + 3}." for day in range(26))
    assert gibberish.judge.reasons([f"{honest} {salad(40)}"]) == [None]  # read as a whole it passes
    assert Guard([gibberish]).over("", f"{honest} {salad(40)}")[1] == "gibberish"


def test_fault_nothing_is_shown_before_it_is_read(guard):
    """Official: it has no stream at all, everything is held back to the end."""
    text = "and so on" * 40
    watch = guard.watch("A phrase?")
    for place in range(0, len(text), 4):
        watch.feed(text[place : place + 4])
    watch.end()
    assert watch.shown.removesuffix(SHORT_REFUSAL).strip() in text
    assert len(watch.shown) < 150 and watch.reason == "gibberish"


def test_the_detector_keeps_nothing_of_what_it_read(gibberish):
    before = len(gibberish.judge._known)
    gibberish("", "A line that only this test has ever asked about, at sixteen tokens or more.")
    assert len(gibberish.judge._known) == before


def test_look_alikes_are_sixty_and_of_six_forms():
    rows = load_look_alikes()
    assert len({row.text for row in rows}) == len({row.id for row in rows}) == 60
    forms = [row.form for row in rows]
    assert {form: forms.count(form) for form in forms} == dict.fromkeys(
        ("table", "code", "rule", "number", "language", "refrain"), 10
    )


# The probe


def clouds(n=40, dim=6, seed=0):
    draw = np.random.default_rng(seed)
    shift = np.zeros(dim)
    shift[2] = 6
    return draw.normal(size=(n, dim)) + shift, draw.normal(size=(n, dim))


def test_the_plane_parts_two_clouds_and_keeps_its_rate_of_false_alarms():
    bad, good = clouds()
    held_out = [np.stack([row, row]) for row in clouds(200, seed=1)[1]]
    plane = fitted_plane(4, bad, good, held_out, alarms=0.05)
    assert plane.layer == 4 and abs(np.linalg.norm(plane.normal) - 1) < 1e-5
    assert abs(plane.normal[2]) > 0.9
    alarms = [bool((plane.scores(looks) > plane.threshold).any()) for looks in held_out]
    assert np.mean(alarms) <= 0.05
    assert (plane.scores(clouds(seed=2)[0]) > plane.threshold).mean() > 0.9


def test_the_side_that_is_larger_weighs_no_more():
    bad, good = clouds()
    even = fitted_plane(0, bad, good, [good])
    uneven = fitted_plane(0, bad, np.concatenate([good] * 5), [good])
    assert even.normal @ uneven.normal > 0.99


@pytest.mark.parametrize(
    "arguments", [((1, 9), 1, 0.1), ((9, 1), 1, 0.1), ((9, 9), 0, 0.1), ((9, 9), 1, 1.5)]
)
def test_a_plane_of_too_little_is_refused(arguments):
    (n_bad, n_good), held_out, alarms = arguments
    with pytest.raises(ValueError, match="a plane needs two of each side"):
        fitted_plane(
            0, np.ones((n_bad, 3)), np.ones((n_good, 3)), [np.ones((1, 3))] * held_out, alarms
        )


@pytest.fixture(scope="module")
def tiny(tokenizer):
    return tiny_model(tokenizer, num_hidden_layers=3)


def test_the_probe_reads_the_newest_part_of_long_replies_and_requests(tiny, tokenizer):
    probe = ProbeDetector(tiny, tokenizer, FP32, Plane(1, np.eye(32)[0], 0.0), window=40)
    long = "word " * 300
    same = probe.states(
        [
            ("x" * 5000 + "end", long + "the end"),
            ("y" * 99 + "x" * 797 + "end", "z" * 90 + long + "the end"),
        ]
    )
    assert np.allclose(same[0], same[1])
    assert probe("", "  ") is None
    assert probe.score("A river?", "The Elbe.") == pytest.approx(
        float(probe.states([("A river?", "The Elbe.")])[0, 0])
    )
    at = probe.score("A river?", "The Elbe.")
    for threshold, wanted in ((at - 1, "probe"), (at + 1, None)):
        moved = ProbeDetector(tiny, tokenizer, FP32, Plane(1, np.eye(32)[0], threshold), window=40)
        assert moved("A river?", "The Elbe.") == wanted


def test_a_probe_is_fitted_to_a_models_own_replies(tiny, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path))
    subject = Subject("tiny", "a digest", LocalBackend(tiny, tokenizer), tiny, tokenizer)
    probe = probe_detector(subject, FP32, limit=4, alarms=0.5, decoding=Decoding(6))
    assert probe.plane.layer == 1 and probe.plane.normal.shape == (32,)
    assert np.isfinite(probe.plane.threshold)
    with pytest.raises(ValueError, match="give a model on this machine"):
        probe_detector(Subject("far", "away", subject.backend), FP32)


def test_detectors_by_name():
    with pytest.raises(
        ValueError, match="there is no detector 'smell'; there are gibberish, probe"
    ):
        detectors_named(["smell"])


# In transformers' generate


def generated(model, tokenizer, guard, tokens=40, rows=1):
    ids = encode(tokenizer, as_dialogue("A river?")).input_ids[None].repeat(rows, 1)
    told = []
    guarded = GuardStreamer(guard, tokenizer, "A river?", told.append)
    output = model.generate(
        ids, max_new_tokens=tokens, do_sample=False, streamer=guarded, stopping_criteria=[guarded]
    )
    return output[0, ids.shape[1] :], guarded, told


ANSWERS = ["One of them is the Río de la Plata 🙂, née Paraná. Another is the Elbe.", "Yes", ""]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("hold", [1, 5, 100])
def test_generate_tells_a_harmless_reply_whole(tokenizer, answer, hold):
    model = saying(tiny_model(tokenizer), tokenizer, answer)
    _, guarded, told = generated(model, tokenizer, Guard([Word()], hold))
    assert guarded.text == "".join(told) == answer and guarded.reason is None


def test_generate_stops_when_something_is_wrong(tokenizer):
    model = saying(tiny_model(tokenizer), tokenizer, "fine fine bad" + " more" * 60)
    new, guarded, told = generated(model, tokenizer, Guard([Word()], hold=4), tokens=60)
    assert guarded.reason == "word" and told == [SHORT_REFUSAL]
    assert len(new) <= 5 + 1  # this transformers tells a token after it asks whether to stop


def test_a_reply_cut_within_a_character_ends(tokenizer):
    ids = tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    model = saying(tiny_model(tokenizer), tokenizer, "ab 🙂")
    before = len(tokenizer("ab ", add_special_tokens=False)["input_ids"])
    _, guarded, _ = generated(model, tokenizer, Guard([Word()], 2), tokens=before + 1)
    assert guarded.text.startswith("ab")


def test_one_reply_at_a_time(tokenizer):
    with pytest.raises(ValueError, match="a guard hears one reply, and 2 rows"):
        generated(tiny_model(tokenizer), tokenizer, Guard([Word()]), tokens=3, rows=2)
