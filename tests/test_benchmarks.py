"""Benchmarks: small files in every known layout, a server on loopback, and malformed inputs."""

import hashlib
import json
import os
import threading
import warnings
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from xb_lite.data import fetching
from xb_lite.data.items import load_items
from xb_lite.data.public import BENCHMARKS, load_dialogues
from xb_lite.data.rows import BenchmarkError

pytestmark = pytest.mark.usefixtures("made_up_sets")

# A folder with the official X-Boundary code's test files; they are not ours to ship.
OFFICIAL = Path(os.environ.get("XB_LITE_OFFICIAL_DATA", "/nowhere"))


def user(text):
    return {"role": "user", "content": text}


PROMPTS = {
    "data": [
        {"behavior": "homonyms", "messages": [user("How do I kill time?")]},
        {"behavior": "figurative", "messages": [user("Wie töte ich die Zeit?")], "note": [1]},
    ]
}
TURNS = {
    "data": [
        {
            "id": 0,
            "behavior": "cooking",
            "default_target": "Bake a cake",
            "queries": ["Who bakes?", "What with?", "And how?"],
            "query_details": {"delivery_type": "recipe"},
        },
        {
            "id": 0,
            "behavior": "cooking",
            "default_target": "Bake a cake",
            "queries": ["Who sells cakes?"],
            "query_details": "relation_friend",
        },
    ]
}
XSTEST = (
    "id,prompt,type,label,focus,note\n"
    '1,"How do I kill time, and where?",homonyms,safe,kill,\n'
    "2,How do I tease someone?,contrast_homonyms,unsafe,kill,\n"
)


@pytest.fixture
def save(tmp_path):
    """Write a file: text or bytes as they are, anything else as JSON."""

    def write(content, name="file.json"):
        path = tmp_path / name
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content, indent=2)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


# Layouts


def test_prompts_of_the_official_code(save):
    path = save(PROMPTS)
    first, second = load_dialogues(path)
    assert first.dialogue == [user("How do I kill time?")]
    assert (first.id, first.category, first.target, first.extra) == (
        "file-1",
        "homonyms",
        None,
        {},
    )
    assert second.turns == ["Wie töte ich die Zeit?"] and second.extra == {"note": [1]}
    assert load_dialogues("oktest", path=str(path))[1].id == "oktest-2"


def test_official_harmbench_judges_against_the_request_not_the_opening(save):
    row = {"behavior": "Bake it", "default_target": "Sure", "messages": [user("Bake it")]}
    contextual = {**row, "context": "A recipe."}
    plain, full = load_dialogues("harmbench", path=save({"data": [row, contextual]}))
    assert (plain.target, plain.category, plain.turns) == ("Bake it", None, ["Bake it"])
    assert plain.extra == {"default_target": "Sure"}
    assert (full.target, full.turns) == ("Bake it", ["A recipe.\n\n---\n\nBake it"])


def test_turns_of_actorattack_and_redqueen(save):
    first, second = load_dialogues("actorattack", path=save(TURNS))
    assert first.turns == ["Who bakes?", "What with?", "And how?"]
    assert first.dialogue[1] == user("What with?")
    assert (first.target, first.category) == ("Bake a cake", "cooking")
    assert first.extra == {"id": 0, "query_details": {"delivery_type": "recipe"}}
    assert second.extra["query_details"] == "relation_friend"
    assert first.id != second.id


def test_safemtdata_as_a_list_and_as_json_lines(save):
    row = {"query_id": 7, "plain_query": "Bake", "multi_turn_queries": ["Who?"], "category": "food"}
    (item,) = load_dialogues(save([row]))
    assert (item.target, item.category, item.turns, item.extra) == (
        "Bake",
        "food",
        ["Who?"],
        {"query_id": 7},
    )
    lines = json.dumps(row) + "\n\n" + json.dumps({**row, "plain_query": "Fry\u2028it"}) + "\n"
    assert [i.target for i in load_dialogues(save(lines))] == ["Bake", "Fry\u2028it"]
    assert len(load_dialogues(save(json.dumps(row), "one.jsonl"))) == 1


def test_xstest_by_name_keeps_the_safe_prompts_and_a_bare_path_keeps_all(save):
    path = save(XSTEST, "xstest.csv")
    (item,) = load_dialogues("xstest", path=path)
    assert item.turns == ["How do I kill time, and where?"] and item.category == "homonyms"
    assert item.extra == {"id": "1", "label": "safe", "focus": "kill", "note": ""}
    assert len(load_dialogues(path)) == 2


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("advbench", 'goal,target\nBake a cake,"Sure, here"\n', ("Bake a cake", None)),
        ("orbench", "prompt,category\nBake?,food\n", (None, "food")),
        ("oktest", '\ufeffprompt\r\n"Bake?\n"\r\n', (None, None)),
        (
            "phtest",
            "ID,Request,Harmfulness\n0,Fry?,controversial\n1,Bake?,harmless\n",
            (None, None),
        ),
        (
            "harmbench",
            "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
            'Bake,contextual,food,context,"Flour,\nsugar",bake\nSing,copyright,song,,,sing\n',
            ("Bake", "food"),
        ),
    ],
)
def test_csv_of_each_home(save, name, text, expected):
    (item,) = load_dialogues(name, path=save(text, "file.csv"))
    assert (item.target, item.category) == expected
    if name == "harmbench":
        assert item.turns == ["Flour,\nsugar\n\n---\n\nBake"]
        assert item.extra["BehaviorID"] == "bake"


@pytest.mark.parametrize(
    "others", ["Behavior,SemanticCategory", "goal,target", "messages,behavior"]
)
def test_a_file_of_ones_own_is_asked_by_its_prompt_whatever_else_it_has(save, others):
    path = save(f"{others},prompt\nplain request,other,wrapped prompt\n", "mine.csv")
    (item,) = load_dialogues(path)
    assert item.turns == ["wrapped prompt"]


def test_a_plain_query_beside_the_prompt_is_what_replies_are_judged_by(save):
    path = save("prompt,plain_query\nOnce upon a time: Bake?,Bake?\nFry?, \n", "mine.csv")
    wrapped, plain = load_items("mine", path=path, kind="benign")
    assert (wrapped.turns, wrapped.judged) == (("Once upon a time: Bake?",), "Bake?")
    assert (plain.turns, plain.judged) == (("Fry?",), "Fry?")
    assert load_dialogues(path)[0].extra == {}


def test_spaces_around_a_name_in_the_header_do_not_count(save):
    (item,) = load_dialogues(save("prompt , note\nBake?,warm\n", "mine.csv"))
    assert item.turns == ["Bake?"] and item.extra == {"note": "warm"}
    with pytest.raises(BenchmarkError, match="has two columns 'prompt': leave one out"):
        load_dialogues(save("prompt,prompt \nBake?,Fry?\n", "mine.csv"))


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="XB_LITE_OFFICIAL_DATA names no folder")
@pytest.mark.parametrize(
    ("name", "file", "count", "turns", "targets"),
    [
        ("harmbench", "harmbench_test_std", 159, 1, True),
        ("xstest", "xstest_v2_prompts", 250, 1, False),
        ("orbench", "ORbench_test_300", 300, 1, False),
        ("actorattack", "SafeMTData_Attack_test_600", 600, 5, True),
    ],
)
def test_public_files_load_as_they_are(name, file, count, turns, targets):
    items = load_dialogues(name, path=OFFICIAL / f"{file}.json")
    assert len({item.id for item in items}) == count
    assert {len(item.turns) for item in items} == {turns}
    assert {item.target is not None for item in items} == {targets}
    assert {item.category is None for item in items} == {name == "harmbench"}
    assert [i.dialogue for i in load_dialogues(OFFICIAL / f"{file}.json")] == [
        i.dialogue for i in items
    ]


def test_specs_are_whole():
    for benchmark in BENCHMARKS.values():
        assert benchmark.kind in ("harmful", "boundary-safe")
        assert benchmark.title and benchmark.licence and benchmark.home.startswith("https://")
        if benchmark.url is not None:  # pinned: a commit stands in the address
            place = benchmark.url.removeprefix("https://raw.githubusercontent.com/").split("/")
            assert len(place[2]) == 40 and set(place[2]) <= set("0123456789abcdef")
            assert benchmark.home == f"https://github.com/{place[0]}/{place[1]}"


# Malformed rows and files


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"messages": None}, "field 'messages': is missing"),
        ({"messages": 3}, "field 'messages': is int, not a text or a list of turns"),
        ({"messages": []}, "field 'messages': has no turns"),
        ({"messages": ["a", 5]}, "field 'messages, turn 2': is no text and no message"),
        ({"messages": [{"role": "user"}]}, "field 'messages, turn 1': is no text and no message"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "has another role than 'user'"),
        ({"messages": [user(" ")]}, "field 'messages, turn 1': is blank"),
        ({"messages": [user(["a"])]}, "field 'messages, turn 1': is list, no text"),
        ({"messages": [user("\ud800")]}, "has characters that cannot be encoded"),
        ({"messages": [user("a")], "behavior": 1}, "field 'behavior': is int, no text"),
        ({"messages": [user("a")], "context": {}}, "field 'context': is dict, no text"),
        ({}, "field 'messages': is missing"),
        ("text", "row 2 is str, not an object with fields"),
    ],
)
def test_malformed_row_is_named_or_left_out(save, row, what):
    path = save({"data": [PROMPTS["data"][0], row, PROMPTS["data"][1]]})
    with pytest.raises(BenchmarkError) as error:
        load_dialogues(path)
    assert str(path) in str(error.value) and "row 2" in str(error.value)
    assert what in str(error.value)
    with pytest.warns(UserWarning, match="1 of 3 rows are malformed and left out .row 2"):
        items = load_dialogues(path, skip_malformed=True)
    assert [item.id for item in items] == ["file-1", "file-3"]


def test_multi_turn_row_without_a_target_is_malformed(save):
    row = {k: v for k, v in TURNS["data"][0].items() if k != "default_target"}
    with pytest.raises(BenchmarkError, match="row 2, field 'default_target': is missing"):
        load_dialogues(save([TURNS["data"][0], row]))


def test_malformed_csv_rows(save):
    path = save('id,prompt,type\n1,Bake?,food\n2,Fry?\n3,Cook?,food,more\n4,"Boil?,food\n', "a.csv")
    with pytest.raises(BenchmarkError, match="row 2, field 'type': is missing"):
        load_dialogues(path)
    with pytest.warns(UserWarning, match="3 of 4 .*row 3 has 4 columns.*row 4 is not CSV"):
        assert [item.turns for item in load_dialogues(path, skip_malformed=True)] == [["Bake?"]]


def test_malformed_json_line(save):
    path = save('{"prompt": "Bake?"}\n{"prompt": \n{"prompt": "Fry?"}\n', "a.jsonl")
    with pytest.raises(BenchmarkError, match="row 2 is not JSON"):
        load_dialogues(path)
    with pytest.warns(UserWarning, match="1 of 3"):
        assert len(load_dialogues(path, skip_malformed=True)) == 2


def test_warning_names_only_the_first_rows(save):
    path = save({"data": [PROMPTS["data"][0], *[{}] * 9]})
    with pytest.warns(UserWarning, match="9 of 10") as caught:
        load_dialogues(path, skip_malformed=True)
    text = str(caught[0].message)
    assert "row 4" in text and "row 5" not in text and text.endswith("…).")
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "is empty"),
        ("\ufeff \n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "is not UTF-8 text"),
        (b"\x00\x00\x00\x00", "zero bytes"),
        ("prompt\nBäcker\n".encode("cp1252"), "is not UTF-8 text .byte 8.: save it as UTF-8"),
        ("prompt\nBake?\n".encode("utf-16"), "is not UTF-8 text"),
        ('{"data": [', "is not JSON"),
        ("[" * 100_000, "nests too deep"),
        ("[" + "9" * 5000 + "]", "number too long"),
        ("{}", "no list of rows"),
        ({"data": {"messages": []}}, "no list of rows"),
        ({"data": []}, "has no rows"),
        ([], "has no rows"),
        ([1, None, "text"], "has none of the fields that hold a dialogue .messages, queries"),
        ([{"text": "Bake?"}], "its fields are: text"),
        ("question,answer\na,b\n", "its fields are: answer, question"),
        ("prompt,category\n", "has no rows"),
        ('"prompt\nBake?\n', "has none of the fields"),
        ("<!DOCTYPE html>\n<html></html>\n", "has none of the fields"),
        ({"data": [{"messages": []}]}, "row 1, field 'messages': has no turns"),
    ],
)
def test_file_that_is_no_benchmark(save, content, what):
    with pytest.raises(BenchmarkError, match=what):
        load_dialogues(save(content))


def test_nothing_left_is_an_error(save):
    with pytest.raises(BenchmarkError, match="no row that can be used .row 1, field 'messages'"):
        load_dialogues(save({"data": [{"messages": []}]}), skip_malformed=True)
    with pytest.raises(BenchmarkError, match="no row that can be used.$"):
        load_dialogues("xstest", path=save(XSTEST.replace(",safe,", ",unsafe,"), "a.csv"))


def test_no_such_file_or_name(tmp_path):
    with pytest.raises(BenchmarkError, match="no benchmark and no file 'xtest'; benchmarks are xs"):
        load_dialogues("xtest")
    with pytest.raises(BenchmarkError, match="There is no file .*gone.json"):
        load_dialogues("xstest", path=tmp_path / "gone.json")
    with pytest.raises(BenchmarkError, match="There is no benchmark 'xtest'; benchmarks are"):
        load_dialogues("xtest", path=tmp_path)
    for folder_or_worse in (tmp_path, "a\0b", "n" * 5000):
        with pytest.raises(BenchmarkError, match="cannot be read"):
            load_dialogues(folder_or_worse)


@pytest.mark.parametrize("name", [n for n, b in BENCHMARKS.items() if b.url is None])
def test_benchmark_without_an_address_says_so(name):
    with pytest.raises(BenchmarkError, match=f"no confirmed address .*{name!r}, path="):
        load_dialogues(name)


# Fetching


class Server:
    """Sends ``body`` with ``status`` to everyone, and says it has ``missing`` bytes more."""

    def __init__(self):
        self.body, self.status, self.missing, self.requests = XSTEST.encode(), 200, 0, 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802
                owner.requests += 1
                self.send_response(owner.status)
                self.send_header("Content-Length", str(len(owner.body) + owner.missing))
                self.end_headers()
                self.wfile.write(owner.body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/xstest_prompts.csv"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def home(monkeypatch, tmp_path):
    server = Server()
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setitem(BENCHMARKS, "xstest", replace(BENCHMARKS["xstest"], url=server.url))
    yield server
    server.stop()


def cached(tmp_path):
    return sorted((tmp_path / "cache" / "benchmarks").iterdir())


def test_fetched_once_with_its_digest(home, tmp_path, capsys):
    first = load_dialogues("xstest")
    assert "fetching xstest" in capsys.readouterr().err
    assert load_dialogues("xstest") == first and len(first) == 1 and home.requests == 1
    file, record = cached(tmp_path)
    assert file.read_bytes() == home.body
    assert json.loads(record.read_text()) == {
        "url": home.url,
        "sha256": hashlib.sha256(home.body).hexdigest(),
    }


def test_altered_copy_is_refused_until_it_is_deleted(home, tmp_path):
    load_dialogues("xstest")
    file, _ = cached(tmp_path)
    file.write_text(XSTEST.replace("kill", "pass"))
    with pytest.raises(
        BenchmarkError, match="was altered since it was fetched.*delete it"
    ) as error:
        load_dialogues("xstest")
    assert str(file) in str(error.value) and home.requests == 1
    file.unlink()
    assert len(load_dialogues("xstest")) == 1 and home.requests == 2


def test_home_that_sends_another_file_later_is_refused(home, tmp_path):
    load_dialogues("xstest")
    file, record = cached(tmp_path)
    file.unlink()
    home.body = home.body.replace(b"kill", b"pass")
    with pytest.raises(BenchmarkError, match="sent another file than at the first fetch") as error:
        load_dialogues("xstest")
    assert str(record) in str(error.value) and cached(tmp_path) == [record]
    record.unlink()
    assert "pass" in load_dialogues("xstest")[0].turns[0]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sha": 1}', "\x00"])
def test_spoilt_record_is_named(home, tmp_path, text):
    load_dialogues("xstest")
    _, record = cached(tmp_path)
    record.write_text(text)
    with pytest.raises(BenchmarkError, match="does not hold a digest any more: delete it"):
        load_dialogues("xstest")


def test_copy_without_a_record_is_fetched_anew(home, tmp_path):
    load_dialogues("xstest")
    file, record = cached(tmp_path)
    record.unlink()
    file.write_text("cut")  # as if the fetch had ended between the two
    assert len(load_dialogues("xstest")) == 1 and home.requests == 2


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ({"status": 404}, "could not be fetched from .*HTTP Error 404: Not Found.*path="),
        ({"status": 500}, "HTTP Error 500"),
        ({"missing": 10}, "could not be fetched"),
        ({"body": b"<html>Log in first</html>"}, "has no rows|none of the fields"),
        ({"body": b""}, "is empty"),
    ],
)
def test_failed_fetch_leaves_nothing(home, tmp_path, state, what):
    for name, value in state.items():
        setattr(home, name, value)
    with pytest.raises(BenchmarkError, match=what):
        load_dialogues("xstest")
    assert not cached(tmp_path)


def test_server_down(home, tmp_path):
    home.stop()
    with pytest.raises(BenchmarkError, match="could not be fetched from .*refused.: try again"):
        load_dialogues("xstest")
    assert not cached(tmp_path)


def test_silent_server(home, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "TIMEOUT", 0.2)
    release = threading.Event()

    def keep_waiting(request, _):
        release.wait(5)
        home.http.shutdown_request(request)

    monkeypatch.setattr(home.http, "process_request", keep_waiting)
    with pytest.raises(BenchmarkError, match="timed out"):
        load_dialogues("xstest")
    release.set()
    assert not cached(tmp_path)


def test_unusable_cache_folder_is_said_before_the_fetch(home, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "taken"))
    with pytest.raises(BenchmarkError, match="cannot be used .*set XB_LITE_CACHE"):
        load_dialogues("xstest")
    assert home.requests == 0


# Whatever the bytes, one clear error or a clean load

SEEDS = [
    json.dumps(PROMPTS).encode(),
    json.dumps(TURNS, indent=1).encode(),
    "\n".join(json.dumps(row) for row in TURNS["data"]).encode(),
    XSTEST.encode(),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@st.composite
def mutated_bytes(draw):
    """A good file with a piece cut out and something else put in."""
    seed = draw(st.sampled_from(SEEDS))
    start = draw(st.integers(0, len(seed)))
    end = draw(st.integers(start, min(len(seed), start + 40)))
    piece = draw(st.binary(max_size=8) | st.sampled_from([b'"', b",", b"\n", b"[" * 9999, b"{}"]))
    return seed[:start] + piece + seed[end:]


@st.composite
def mutated_fields(draw):
    """A good file with any JSON in one or two places."""
    document = json.loads(draw(st.sampled_from(SEEDS[:2])))
    for _ in range(draw(st.integers(1, 2))):
        place = document
        while True:
            last = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not last:
                break
            key = draw(st.sampled_from(last))
            if isinstance(place[key], (dict, list)) and draw(st.booleans()):
                place = place[key]
                continue
            place[key] = draw(JSON)
            break
    return json.dumps(document).encode()


def check_one_clear_outcome(path, data):
    path.write_bytes(data)
    for skip in (False, True):
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                items = load_dialogues(path, skip_malformed=skip)
        except BenchmarkError as error:
            assert path.name in str(error)
        else:
            assert items and len(caught) <= skip
            for item in items:
                assert item.turns and all(turn.strip() for turn in item.turns)
                assert {message["role"] for message in item.dialogue} == {"user"}
                assert isinstance(item.target, (str, type(None)))
                assert isinstance(item.category, (str, type(None)))


PROPERTY = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@PROPERTY
@given(mutated_bytes() | st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b"[" * 50_000)
@example(b"{")
@example(b'prompt\n"' + b"a" * 200_000 + b'"\n')
def test_any_bytes_give_an_error_or_items(tmp_path, data):
    for name in ("a.json", "a.jsonl"):
        check_one_clear_outcome(tmp_path / name, data)


@PROPERTY
@given(mutated_fields())
def test_any_field_values_give_an_error_or_items(tmp_path, data):
    check_one_clear_outcome(tmp_path / "a.json", data)


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"\x1f\x8b\x08\x00", "compressed by gzip: unpack it"),
        (b"PK\x03\x04", "a ZIP archive or a spreadsheet"),
        (b"PAR1\x15", "Parquet: save it as JSON lines"),
    ],
)
def test_packed_files_get_advice_of_their_own(tmp_path, start, says):
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(start + bytes(20))
    with pytest.raises(BenchmarkError, match=says):
        load_dialogues(path)


def test_of_what_is_there_twice_neither_wins(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,category,prompt\nBake?,food,Fry?\n")
    with pytest.raises(BenchmarkError, match="has two columns 'prompt': leave one out"):
        load_dialogues(path)
    path.write_text('[{"prompt": "Bake?", "prompt": "Fry?"}]')
    with pytest.raises(BenchmarkError, match="field 'prompt': is there twice"):
        load_dialogues(path)
    path.write_text('{"prompt": "Bake?"}\n{"prompt": "Bake?", "prompt": "Fry?"}\n')
    with pytest.raises(BenchmarkError, match="row 2, field 'prompt': is there twice"):
        load_dialogues(path)
