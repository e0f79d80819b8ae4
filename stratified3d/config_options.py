"""Overrides of a config on the command line, as mmengine reads them, but with their spaces."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

_SPACE = '\N{SYMBOL FOR SPACE}'


class ConfigOptions(argparse.Action):
    """`--cfg-options KEY=VALUE ...`, added to a dict.

    mmengine's `DictAction` removes all spaces, so that a folder `my data` becomes `mydata`. Only
    those beside commas and brackets of a list are removed here. mmengine is imported once the
    option is used.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        options = dict(getattr(namespace, self.dest, None) or {})
        for pair in values or ():
            key, sign, text = pair.partition('=')
            if not sign:
                parser.error(f'{option_string} takes KEY=VALUE, not {pair!r}')
            try:
                options[key] = parse_value(text)
            except AssertionError as error:
                parser.error(f'{option_string} {pair}: {error}')
        setattr(namespace, self.dest, options)


def parse_value(text: str) -> Any:
    """The number, bool, None, string, list or tuple that a text stands for.

    Raises:
        AssertionError: brackets that are not closed.
    """
    # the module that defines it: `mmengine.config` may hold this file's class
    from mmengine.config.config import DictAction

    text = text.strip()
    if ',' in text or text.startswith(('(', '[')):  # brackets elsewhere belong to a name
        text = re.sub(r' *([,()\[\]]) *', r'\1', text)
    return _with_spaces(DictAction._parse_iterable(text.replace(' ', _SPACE)))


def _with_spaces(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(_SPACE, ' ')
    if isinstance(value, (list, tuple)):
        return type(value)(map(_with_spaces, value))
    return value
