"""Which messages and warnings the entry points show; whole commands are tested in tests/engine."""

import errno
import logging
import warnings

import pytest

from stratified3d.checkpoints import load_checkpoint_file
from stratified3d.commands import hide_startup_warnings
from stratified3d.host import user_message


def test_user_message_is_that_of_the_package_wherever_it_was_raised_again():
    with pytest.raises(KeyError) as error:
        try:
            load_checkpoint_file('none.pth')
        except FileNotFoundError as cause:
            raise KeyError('wrapped') from cause
    assert user_message(error.value) == 'there is no checkpoint none.pth'
    assert user_message(ValueError('raised in a test')) is None


def test_user_message_of_a_full_disk_names_the_file():
    message = user_message(OSError(errno.ENOSPC, 'No space left', 'epoch_3.pth'))
    assert 'the disk is full at epoch_3.pth' in message and '--resume' in message


def test_startup_warnings_are_hidden_and_those_of_users_are_not(monkeypatch):
    tracing = logging.getLogger('torch.fx._symbolic_trace')
    monkeypatch.setattr(tracing, 'filters', [])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        hide_startup_warnings()
        text = 'pkg_resources is deprecated as an API'
        warnings.warn_explicit(text, UserWarning, 'a.py', 1, module='mmengine.utils.package_utils')
        warnings.warn_explicit(text, UserWarning, 'b.py', 1, module='mine')
        warnings.warn_explicit('mine', UserWarning, 'c.py', 1, module='mmengine.utils')
    (added,) = tracing.filters

    assert [str(warning.filename) for warning in seen] == ['b.py', 'c.py']
    records = [
        logging.LogRecord('a', logging.WARNING, 'a.py', 1, text, (), None)
        for text in ('is_fx_tracing will return true for both', 'mine')
    ]
    assert [added(record) for record in records] == [False, True]
