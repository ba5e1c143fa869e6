"""What counts as readable and what as junk, and the faults of the official filter."""

import random
import string
import time
from pathlib import Path

import pytest
import torch

from xb_lite.judges.gibberish import Gibberish, shuffled_words, text_losses
from xb_lite.models.precision import Precision
from xb_lite.reproduce.gibberish_limits import limit_at

DRAW = random.Random(0)

HONEST = {
    "yes": "Yes.",
    "number": "42",
    "name": "Paris",
    "rare words": "Kumquat marmalade.",
    "operator": "+",
    "smiley": "👍",
    "long table of numbers": "day,share,trend\n"
    + "\n".join(f"{DRAW.randint(1, 999)},{DRAW.randint(1, 999)},up" for _ in range(60)),
    "digits": "1 / 3 = 0.333333333333333333333333333333333333333333",
    "pi": "3.14159265358979323846264338327950288419716939937510",
    "sums": "12 * 12 = 144, 13 * 13 = 169, 14 * 14 = 196, 15 * 15 = 225.",
    "rule": "First part.\n\n" + "-" * 30 + "\n\nSecond part, after the rule.",
    "table": "| Name | Age | City | Since |\n|---|---|---|---|---|---|\n"
    "| Ann | 31 | Oslo | 2001 |\n| Ben | 45 | Rome | 2010 |\n| Cleo | 28 | Lima | 2015 |",
    "yes-no table": "| Who | A | B | C | D |\n|---|---|---|---|---|\n"
    "| Ann | yes | yes | yes | yes |\n| Ben | yes | no | yes | yes |\n| Cleo | no | no | yes | - |",
    "code": "```python\ndef add(a, b):\n    return a + b\n\nfor i in range(10):\n"
    "    print(add(i, 1))\n```",
    "list": "1. Boil water.\n2. Add the tea.\n3. Wait three minutes.\n4. Pour it through a sieve.",
    "counted": "item 1, item 2, item 3, item 4, item 5, item 6, item 7, item 8",
    "greetings": "Hello, Привет, 你好, مرحبا, नमस्ते, Γειά σου: one word in six languages.",
    "chorus": "Row your boat, row your boat,\ngently down the stream.\n" * 3
    + "Merrily the water goes,\nlife is but a dream.",
    "poem": "Moss upon the well rope,\nthe kettle hums to no one.\nSnow forgets the road,\n"
    "snow forgets the road.",
    "laughter": "Ha ha ha ha ha ha!",
    "french": "Pour préparer une tarte aux pommes, il faut d'abord éplucher les fruits, puis les "
    "couper en fines tranches.",
    "german": "Um einen Kuchen zu backen, brauchen Sie Mehl, Zucker, Eier und etwas Butter. Rühren "
    "Sie alles gut um.",
    "spanish": "Para preparar una tortilla necesitas huevos, patatas, cebolla y un poco de aceite.",
    "chinese": "当然可以。要做一碗好吃的面条，首先要准备新鲜的蔬菜和鸡蛋，然后把水烧开。",
    "chinese, cut": "要做一碗好吃的面条，首先要准备新鲜的蔬菜\ufffd",
    "arabic": "لتحضير الشاي، ضع الماء على النار حتى يغلي، ثم أضف أوراق الشاي والسكر حسب رغبتك.",
    "a human prompt": "I keep bees on an allotment and would like a label for my honey jars that "
    "mentions clover, heather and a wet spring.",
}

SENTENCE = "The museum by the old harbour opens at nine and closes when the last visitor has left."
JUNK = {
    "nothing": ("", "empty"),
    "white space": (" \n\t ", "empty"),
    "points": ("... ... ...", "empty"),
    "no whole character": ("\ufffd" * 5, "empty"),
    "a word": ("noise " * 40, "repetition"),
    "a word without spaces": ("gá" + "á" * 60, "repetition"),
    "a word in capitals": ("LCU, lcu, " * 12, "repetition"),
    "a phrase": ("the most, " * 15, "repetition"),
    "a sentence": (SENTENCE * 6, "repetition"),
    "a Chinese phrase": ("好的，当然可以。" * 12, "repetition"),
    "a rule alone": ("=" * 60, "repetition"),
    "few words, not in turn": (
        " ".join(DRAW.choices(["like", "in", "most", "or", "the"], k=60)),
        "repetition",
    ),
    "decay into a loop": (SENTENCE * 2 + " and so on" * 12, "repetition"),
    "salad": (shuffled_words(f"{SENTENCE} {SENTENCE[::-1]}", seed=3), "perplexity"),
    "salad in the last part alone": (
        " ".join([SENTENCE.replace("nine", str(hour)) for hour in (7, 8, 9, 10)])
        + " "
        + shuffled_words(
            " ".join(HONEST[name] for name in ("poem", "spanish", "a human prompt")), 1
        )
        * 2,
        "perplexity",
    ),
    "random letters": (
        "".join(DRAW.choices(string.ascii_letters + " " * 9, k=150)),
        "perplexity",
    ),
    "symbol soup": (
        "".join(DRAW.choices(string.punctuation + string.ascii_letters + " ", k=150)),
        "perplexity",
    ),
    "bytes that are no text": ("now\ufffdback \ufffdcan\ufffd near\ue001 \x00 reach", "characters"),
    "mixed alphabets": ("the backдеgkto of haузеll and aboусt", "characters"),
    "noise of 0.4 in the weights": (
        "stretched-fastrate: undéceceourabon (110.E.YoT11Y\n\nT.E.Y.T.L.E.E.BEB1FAT",
        "perplexity",
    ),
    "noise of 1 in the weights": (
        "inages of on formaterialir I in forever from most most ideas all ins like like like in in "
        "such amonguis likes muchorialtilleral some allek in high for likes",
        "perplexity",
    ),
}


@pytest.fixture(scope="module")
def judge(default_model):
    return Gibberish(*default_model, Precision("cpu", torch.float32, None, "tests"))


@pytest.fixture(scope="module")
def reasons(judge):
    """Of all texts above, read in one batch."""
    texts = {**HONEST, **{name: text for name, (text, _) in JUNK.items()}}
    return dict(zip(texts, judge.reasons(list(texts.values())), strict=True))


@pytest.mark.parametrize("name", HONEST)
def test_honest_text_passes(reasons, name):
    assert reasons[name] is None


@pytest.mark.parametrize("name", JUNK)
def test_junk_is_flagged_and_the_reason_said(reasons, name):
    assert reasons[name] == JUNK[name][1]


def test_the_labels_keep_the_order_and_do_not_depend_on_the_batch(judge, reasons):
    texts = [*(text for text, _ in JUNK.values()), *HONEST.values()][::-6]
    labels = judge([""] * len(texts), texts)
    alone = [judge([""], [text])[0] for text in texts]
    of = {**HONEST, **{name: text for name, (text, _) in JUNK.items()}}
    before = {text: reasons[name] for name, text in of.items()}
    assert labels == alone == ["gibberish" if before[text] else "complied" for text in texts]
    assert set(labels) == {"gibberish", "complied"} and judge.name == "gibberish"
    assert judge([], []) == []


def test_a_short_loop_at_the_end_of_a_long_answer_is_forgiven(judge):
    answer = " ".join(HONEST[name] for name in ("list", "spanish", "a human prompt", "french"))
    assert judge.reasons([answer + " and so on" * 6]) == [None]


def test_loops_in_long_texts_are_found_in_time():
    from xb_lite.judges.gibberish import _repeats

    words = ["".join(DRAW.choices(string.ascii_lowercase, k=6)) for _ in range(2000)]
    start = time.perf_counter()
    assert not _repeats(" ".join(words) + " and so on" * 20)
    assert _repeats(" ".join(words) + " and so on" * 1000)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("requests", "responses"),
    [(["a"], []), ("a", "b"), (["a"], "b"), (["a", "b"], ["c", None]), (["a"], [3])],
)
def test_what_is_no_list_of_strings_is_refused(judge, requests, responses):
    with pytest.raises(ValueError, match="string"):
        judge(requests, responses)


def test_losses_are_those_of_transformers(default_model):
    model, tokenizer = default_model
    ids = torch.tensor([tokenizer(SENTENCE)["input_ids"]])
    with torch.no_grad():
        expected = float(model(ids, labels=ids).loss)
    losses = text_losses(model, tokenizer, ["Paris", SENTENCE, SENTENCE * 3])
    assert losses[0, 1] == pytest.approx(expected, rel=1e-4)
    n_tokens, n_bytes = ids.shape[1] - 1, len(SENTENCE)
    assert losses[1, 1] == pytest.approx(expected * n_tokens / n_bytes, rel=1e-4)
    assert losses[:, 0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("scores", "alarms", "limit"),
    [
        ([1, 2, 3, 4], 0.25, 3.5),
        ([1, 2, 3, 4], 0.0, 4.001),
        ([1, 2, 2.0001, 2.0002, 4], 0.2, 3.0001),  # one sentence three times
        ([1, 2, float("inf")], 0.4, 2.001),  # found without the limit
    ],
)
def test_no_more_than_the_share_exceeds_the_limit(scores, alarms, limit):
    assert limit_at(scores, alarms) == pytest.approx(limit)
    assert sum(score > limit for score in scores) <= alarms * len(scores)


@pytest.mark.parametrize(("scores", "alarms"), [([], 0.05), ([1.0], 1.0), ([1.0], -0.1)])
def test_a_limit_that_cannot_be_is_refused(scores, alarms):
    with pytest.raises(ValueError, match="no limit does that"):
        limit_at(scores, alarms)


def test_shuffling_keeps_the_words_and_the_white_space():
    shuffled = shuffled_words(HONEST["code"], seed=1)
    assert sorted(shuffled.split()) == sorted(HONEST["code"].split())
    assert [c for c in shuffled if c.isspace()] == [c for c in HONEST["code"] if c.isspace()]


@pytest.mark.parametrize(
    ("text", "flagged"),
    [
        ("la la la la la", False),  # four times "la " and an end
        ("tra tra tra tra tra tra ", True),
        ("Ab1aB1AB1ab1aB1", True),  # case does not count
        ("First." + " " * 40 + "Second.", False),  # nor do runs of blanks
        ("ab" * 50, True),  # as "abab", again and again
        ("aa" * 3, False),
        ("x" * 15, True),
        ("äöü" + "abcdefgh", True),
        ("äöü" + "abcdefghijkl", False),
        (" ".join(["one"] * 101), True),
    ],
)
def test_the_official_filter_as_restated(text, flagged):
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from gibberish import by_form

    assert by_form(text) == flagged == official(text)


def official(text):
    """The code's own way, step by step: a window over a text that is compared with what follows."""
    text = text.lower().strip()
    words, most = text.split(), 0
    for length in range(3, min(50, len(text) // 2)):
        for start in range(len(text) - 2 * length):
            part, often, at = text[start : start + length], 0, start
            while not part.isspace() and text[at : at + length] == part:
                often, at = often + 1, at + length
            most = max(most, often)
    foreign = sum(ord(c) > 127 for c in text) / len(text)
    return most >= 5 or foreign > 0.2 or len(set(words)) < 0.01 * len(words)
