"""An extension of griffe, which reads the docstrings for the site.

Its parser of Google's style wants a blank line before `Returns:` and the like; ours have none.
"""

from __future__ import annotations

import re

import griffe

_SECTION = re.compile(r'\n(?=(?:Args|Attributes|Returns|Yields|Raises|Warns):\n)')


class SpacedSections(griffe.Extension):
    """Puts a blank line before each section of a docstring."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _SECTION.sub('\n\n', obj.docstring.value)
