"""The default model's own 4-bit file behind llama.cpp's server, beside its unpacked weights."""

import pytest
from serving import free_port, serving

from xb_lite.dialogues import as_dialogue
from xb_lite.intention.defenses import DEFENSES
from xb_lite.intention.prompts import FIRST
from xb_lite.models.cached import DEFAULT, SPECS, gguf_file
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.server import RemoteBackend, RemoteError
from xb_lite.replies.types import Decoding

pytest.importorskip(
    "llama_cpp.server", reason='llama.cpp is not installed: pip install "xb-lite[llama]"'
)
PROMPTS = (
    "Name a river.",
    "What is 12+30?",
    "What is the capital of France?",
    "Write a haiku about snow.",
    "How do I boil an egg?",
    "Which planet is the largest?",
    "Say hello in Spanish.",
    "What is the opposite of cold?",
)
SHORT = Decoding(max_new_tokens=12)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path, port = gguf_file(SPECS[DEFAULT]), free_port()
    command = ["llama_cpp.server", "--model", str(path), "--n_ctx", "2048"]
    command += ["--n_threads", "1", "--n_threads_batch", "1"]
    log = tmp_path_factory.mktemp("llama") / "log.txt"
    with serving(command, port, "/v1/models", log):
        yield RemoteBackend(f"http://127.0.0.1:{port}/v1", str(path), "none", concurrency=1)


def test_it_begins_most_replies_as_the_unpacked_weights_do(served, default_model):
    """Not all: llama.cpp rounds what flows between the layers to 8 bits as well."""
    dialogues = [as_dialogue(prompt) for prompt in PROMPTS]
    there = served.reply(dialogues, SHORT)
    here = LocalBackend(*default_model).reply(dialogues, SHORT)
    assert [reply.prompt_tokens for reply in there] == [reply.prompt_tokens for reply in here]
    alike = [a.text.split()[:2] == b.text.split()[:2] for a, b in zip(there, here, strict=True)]
    assert sum(alike) >= 0.75 * len(PROMPTS)


def test_both_stages_reach_it_as_one_dialogue(served):
    (stages,) = DEFENSES["ia"](served, [as_dialogue("Name a river.")], SHORT, "")
    intention, answer = stages
    assert "intention" in intention.text.lower() and answer.text
    assert 0 < intention.new_tokens <= FIRST.max_new_tokens
    assert answer.prompt_tokens > intention.prompt_tokens + intention.new_tokens


def test_a_prefill_is_refused_in_one_sentence(served):
    with pytest.raises(RemoteError, match="continues no prefill"):
        served.reply([as_dialogue("Name a river.")], SHORT, prefill="Sure, here")
