"""One evaluation for every defense: ask, judge, count, compare (chapter 3)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "outcomes": ["Outcome", "evaluate", "read_log"],
        "summary": ["summarise", "verdicts"],
        "comparison": ["gap", "gap_by_group", "item_rates"],
        "capability": ["quiz"],
        "runs": ["evaluate_subject"],
    },
)
