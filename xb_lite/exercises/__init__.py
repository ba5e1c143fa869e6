"""Exercises that check themselves: one module a chapter, a function an exercise.

A stub returns ``...``; ``check.NAME(yours)`` says what is right, or which mistake it recognises:

    from xb_lite.exercises import hidden_states as check
    check.mean_state(yours)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"verdicts": ["Verdict", "predict"]},
)
