"""A model is told the same date whenever it is asked."""

from datetime import datetime, timedelta

import pytest
import torch
from tiny import tiny_model
from transformers.utils import chat_template_utils

from xb_lite.dialogues import as_dialogue, render
from xb_lite.models.cached import ModelError
from xb_lite.models.clock import without_clock
from xb_lite.models.loading import load_model
from xb_lite.models.precision import Precision
from xb_lite.replies.subjects import local_subject

FP32 = Precision("cpu", torch.float32, None, "tests")
SAY = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
# As in Llama 3.2's template, and as in gpt-oss's, which asks within a macro.
LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}'
    '{%- set date_string = "26 Jul 2024" %}{%- endif %}{%- endif %}'
    "Today Date: {{ date_string }}\n" + SAY
)
GPT_OSS = (
    "{%- macro system() -%}Current date: {{ strftime_now('%Y-%m-%d') }}\n{%- endmacro -%}"
    "{{ system() }}" + SAY
)


class Tomorrow(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + timedelta(days=1)


@pytest.fixture
def folder(tmp_path, tokenizer):
    tiny_model(tokenizer, hidden_size=16).save_pretrained(tmp_path / "dated")
    tokenizer.save_pretrained(tmp_path / "dated")
    return tmp_path / "dated"


@pytest.mark.parametrize(
    ("template", "said"), [(LLAMA, "26 Jul 2024"), (GPT_OSS, "2024-07-26")], ids=["llama", "gpt"]
)
def test_the_date_is_the_same_every_day(folder, monkeypatch, template, said):
    (folder / "chat_template.jinja").write_text(template)
    _, tokenizer = load_model(folder, FP32)
    today = render(tokenizer, as_dialogue("Hi."))
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    chat_template_utils._compile_jinja_template.cache_clear()
    assert render(tokenizer, as_dialogue("Hi.")) == today
    assert said in today
    assert tokenizer.xb_date == "2024-07-26"


def test_the_date_is_part_of_what_replies_are_kept_under(folder):
    before = local_subject(folder, FP32)
    assert "date" not in before.identity(FP32)
    (folder / "chat_template.jinja").write_text(LLAMA)
    after = local_subject(folder, FP32)
    assert after.identity(FP32)["date"] == after.date == "2024-07-26"


def test_a_date_that_cannot_be_fixed_is_refused(folder):
    (folder / "chat_template.jinja").write_text(
        "{% set form = '%d' %}{{ strftime_now(form) }}" + SAY
    )
    with pytest.raises(ModelError, match="date in a way that cannot be fixed"):
        load_model(folder, FP32)


def test_a_template_without_a_clock_stays_as_it_is(tokenizer):
    template = tokenizer.get_chat_template()
    assert without_clock(template) == (template, False)
