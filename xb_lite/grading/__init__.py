"""Grading: the exercises of a submitted notebook, run behind the walls that this system grants.

A lecturer runs ``xb-lite grade FILE.ipynb``; a script calls ``grade``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"report": ["Grade", "grade", "isolation"], "submission": ["exercises_of"]},
)
