"""Small files in the layouts of the official training data, with harmless words."""

import json


def rows(circuit=6, safemt=3, answered=4, refused=1, chats=9):
    """By name, the rows of each file; the second dialogue is too short to be used."""
    return {
        "circuit-breakers": [
            {
                "prompt": f"Weed {i}",
                "output": f"Sure, weed {i} grows. " * (1 + i % 3),
                "llama3_output": f"No weed {i}.",
                "qwen_output": f"Not weed {i}.",
                "gemma_output": f"Never weed {i}.",
            }
            for i in range(circuit)
        ],
        "safemt": [
            {"prompt": f"Nettle {i}", "output": f"Nettle {i} it is."} for i in range(safemt)
        ],
        "orbench-retain": [
            {
                "prompt": f"Kill weed {i}",
                "completion": f"Gladly: pull it out {i}.",
                "status": "1_full_compliance" if i >= refused else "2_full_refusal",
            }
            for i in range(answered + refused)
        ],
        "ultrachat": [
            {
                "messages": [
                    {"role": ("user", "assistant")[turn % 2], "content": f"Tea {i} {turn}"}
                    for turn in range(1 if i == 1 else 2 + 2 * (i % 2))
                ]
            }
            for i in range(chats)
        ],
    }


def written(folder, content=None):
    """The files in a folder, as words behind ``--data official``."""
    words = []
    for name, some in (content or rows()).items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(some))
        words.append(f"{name}={path}")
    return words
