"""Small random models, in which a batch can be compared exactly, and something to train them on."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from xb_lite.dialogues import as_dialogue, as_turns
from xb_lite.files import cache_folder
from xb_lite.models.cached import DEFAULT
from xb_lite.recipes import load_recipe
from xb_lite.training.sets import Sets


def tiny_model(tokenizer, kind="llama", hidden_size=32, num_hidden_layers=2, **sizes):
    """In fp32, with the vocabulary of ``tokenizer``; the same weights every time. ``sizes``: more
    of the config."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.3,
        **{"num_key_value_heads": 2, **sizes},
    )
    return AutoModelForCausalLM.from_config(config).eval()


def saying(model, tokenizer, *answers):
    """``model`` says ``answers`` in turn, one to each row of a batch; ``model.seen`` has what was
    asked."""
    said = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    model.seen, step = [], 0

    def steer(_module, _args, options, output):
        nonlocal step
        new = options["input_ids"]
        if new.shape[1] > 1:
            step = 0
            masks = options.get("attention_mask", torch.ones_like(new)).bool()
            model.seen += [row[mask].tolist() for row, mask in zip(new, masks, strict=True)]
        for row in range(len(new)):
            ids = said[row % len(said)]
            output.logits[row, -1, ids[step] if step < len(ids) else tokenizer.eos_token_id] = 1e4
        step += 1

    model.register_forward_hook(steer, with_kwargs=True)
    return model


def tiny_sets(harmful=7, boundary=5, benign=6, dialogues=4):
    """Dialogues of all lengths, so many of each kind; ``dialogues`` harmful and as many benign ones
    of 2 or 3 turns."""

    def texts(what, count):
        return [f"{what} {i}" * (1 + i % 3) for i in range(count)]

    def said(prompts, what):
        return [as_dialogue(p, f"{what} {i} so. " * (1 + i % 4)) for i, p in enumerate(prompts)]

    def talks(what, answer):
        return [
            as_turns(
                [f"{what} {i} {turn}" for turn in range(2 + i % 2)],
                [f"{answer} {i} {turn}. " * (1 + i % 3) for turn in range(2 + i % 2)],
            )
            for i in range(dialogues)
        ]

    bad, near, good = texts("bad", harmful), texts("near", boundary), texts("good", benign)
    return Sets().having(
        harmful=said(bad, "Sure"),
        refused=said(bad, "Sorry, not"),
        compliant=said(near, "Gladly"),
        over_refused=said(near, "I cannot"),
        benign=said(good, "Hello"),
        harmful_dialogues=talks("worse", "Yes"),
        benign_dialogues=talks("tea", "Fine"),
        compliant_prefilled=said(near, "Sure, gladly"),
        over_refused_prefilled=said(near, "I will not"),
        benign_prefilled=said(good, "Sure, hello"),
        benign_dialogues_prefilled=talks("tea", "Sure, fine"),
    )


def tiny_recipe(name="x-boundary-smollm2-135m", **changes):
    """For a model of 4 layers, of which it leaves out the last."""
    sizes = {
        "target_layers": [1, 2],
        "lora_layers": 3,
        "rank": 4,
        "steps": 4,
        "pairs": 4,
        "pairs_at_once": 4,
        "max_tokens": 128,
    }
    return load_recipe(name, **{**sizes, **changes})


def own_cache(folder):
    """A cache folder of a test's own, with the default model in it, which ``tokenizer`` fetched."""
    folder.mkdir()
    for path in cache_folder().glob(f"{DEFAULT}-*"):
        (folder / path.name).symlink_to(path)
    return folder
