"""Folders that several processes come to at the same time."""

import errno
import fcntl
import json
import os

import pytest

from stratified3d.datasets.io import disk
from stratified3d.datasets.io.disk import claim_folder, lock


def test_the_first_ones_settings_hold(tmp_path, monkeypatch):
    """Another process writes its settings just before ours would be."""
    link, path = os.link, tmp_path / 'out/conversion.json'

    def late(source, target):
        path.write_text(json.dumps(dict(a=2)))
        link(source, target)

    monkeypatch.setattr(disk.os, 'link', late)
    with pytest.raises(ValueError, match="was converted with .'a': 2., not .'a': 1."):
        claim_folder(tmp_path / 'out', dict(a=1))
    assert json.loads(path.read_text()) == dict(a=2) and os.listdir(path.parent) == [
        'conversion.json'
    ]
    claim_folder(tmp_path / 'out', dict(a=2))


def test_without_links_and_with_strays(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, 'no links')

    monkeypatch.setattr(disk.os, 'link', refuse)
    (tmp_path / 'conversion.json.host.1.partial').write_text('{')  # of a killed process
    claim_folder(tmp_path, dict(a=1))
    claim_folder(tmp_path, dict(a=1))
    (tmp_path / 'conversion.json').write_text('{"a"')
    with pytest.raises(ValueError, match='conversion.json: damaged .*delete it to go on'):
        claim_folder(tmp_path, dict(a=1))


def test_a_lock(tmp_path, monkeypatch):
    path = tmp_path / 'lock'
    with lock(path, is_shared=True) as first, lock(path, is_shared=True) as second:
        assert first and second
        with lock(path, wait=False) as third:
            assert not third
    with lock(path, wait=False) as alone:
        assert alone

    def none(*_):
        raise OSError(errno.ENOSYS, 'Function not implemented')

    monkeypatch.setattr(fcntl, 'flock', none)
    for answer in (True, False):
        with pytest.warns(UserWarning, match='without locks'), lock(path, without=answer) as held:
            assert held == answer
    with pytest.raises(OSError, match='mend that'), lock(tmp_path / 'none/lock'):
        pass
