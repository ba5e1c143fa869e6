"""The date in a prompt: fixed, for some chat templates print today's, which changes replies.

So do those of Llama 3.1 to 3.3 and gpt-oss. The date here is the one that Llama's templates print
where they have no clock.
"""

from __future__ import annotations

import re
from datetime import datetime

DATE = datetime(2024, 7, 26, 12)
CALL = re.compile(r"""\bstrftime_now\s*\(\s*(?P<quote>["'])(?P<form>[^"'\\{}]*)(?P=quote)\s*\)""")


def without_clock(template: str) -> tuple[str, bool]:
    """A chat template with ``DATE`` wherever it would look at the clock; and whether it would.

    Raises:
        ValueError: it looks at the clock in a way that is not known here.

    Example:
        >>> without_clock('Today is {{ strftime_now("%d %b %Y") }}.')
        ("Today is {{ '26 Jul 2024' }}.", True)
    """
    fixed, often = CALL.subn(lambda call: repr(DATE.strftime(call["form"])), template)
    if re.search(r"\bstrftime_now\s*[(|]", fixed):
        raise ValueError("it asks for today's date in a way that cannot be fixed")
    return fixed, often > 0
