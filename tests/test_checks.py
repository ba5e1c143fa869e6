"""What does not fit is found before a run, and named."""

import pytest
import torch
from tiny import tiny_model, tiny_recipe, tiny_sets

from xb_lite.models.packing import relative_error
from xb_lite.models.precision import Precision
from xb_lite.recipes import RecipeError
from xb_lite.training.checks import ROUNDING, check_fit
from xb_lite.training.run import train

EXACT = Precision("cpu", torch.float32, None, "tests")

pytestmark = pytest.mark.usefixtures("one_thread")


def model_of(tokenizer, kind, **sizes):
    return tiny_model(tokenizer, kind, num_hidden_layers=4, **sizes)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "olmo2"])
def test_models_with_plain_attention_fit(tokenizer, kind):
    model = model_of(tokenizer, kind)
    before = model.config._attn_implementation
    check_fit(tiny_recipe(), model)
    assert relative_error(model, 3) < 1e-5
    assert relative_error(model.bfloat16(), 3) < ROUNDING
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("kind, sizes", [("bloom", {}), ("gpt_oss", {"num_local_experts": 4})])
def test_attention_that_reaches_across_rows_is_measured(tokenizer, kind, sizes):
    assert relative_error(model_of(tokenizer, kind, **sizes), 3) > 5 * ROUNDING


@pytest.mark.parametrize(
    "kind, sizes, has",
    [
        ("phi3", {}, "no q_proj, .*gate_proj, up_proj, and qkv_proj, gate_up_proj besides"),
        ("gpt_neox", {}, "no q_proj, .* and query_key_value, dense, "),
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2}, "no gate_proj, .*experts"),
        ("qwen2_moe", {"num_experts": 4, "num_experts_per_tok": 2}, "experts, .* besides"),
    ],
)
def test_linear_layers_that_lora_would_miss_are_named(tokenizer, kind, sizes, has):
    with pytest.raises(RecipeError, match=f"LoRA is on q_proj, .* decoder layer 0 has {has}"):
        check_fit(tiny_recipe(), model_of(tokenizer, kind, **sizes))


def test_a_model_that_needs_padding_is_refused_before_anything_is_written(tokenizer, tmp_path):
    folder, recipe = tmp_path / "mine", tiny_recipe()
    with pytest.raises(RecipeError, match="Gemma2ForCausalLM .*without padding .*softcap"):
        train(recipe, model_of(tokenizer, "gemma2"), tokenizer, tiny_sets(), folder, EXACT)
    with pytest.raises(RecipeError, match="StableLmForCausalLM .*without padding .*change by"):
        train(recipe, model_of(tokenizer, "stablelm"), tokenizer, tiny_sets(), folder, EXACT)
    assert not folder.exists()
