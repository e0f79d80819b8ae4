"""Pickles of plain data: what pickle writes is read, and nothing of a file is run."""

import copyreg
import importlib
import io
import os
import pickle
import pickletools
import random
import struct
import subprocess
import time
import tracemalloc
from collections import OrderedDict

import mmengine
import numpy as np
import pytest
import torch

import stratified3d.plugin  # noqa: F401  (registers the reader of pickles)
from benchmarks.mutations import mutate
from stratified3d.datasets.io import pickle_scan
from stratified3d.datasets.io.safe_pickle import DamagedPickle, read_plain_pickle

PLAIN = dict(
    texts=['', 'a', 'ü', '\U0001f600' * 70, 'x' * 70_000],
    numbers=[0, -1, 255, 70_000, 2**31, -(2**63), 2**64 - 1, 0.5, float('inf'), True, False, None],
    bytes=[b'', b'\x00\xff', b'y' * 300],
    tuples=((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, (4, (5,)))),
    nested=[[[], {}], {'a': {'b': [1, 2]}, 3: 'c', (1, 2): 'd'}],
)
# of numpy's modules, here
OWN_NAME = np.zeros(1).__reduce__()[0].__module__.removesuffix('.multiarray')
KINDS = ('?', 'i1', 'u2', '<i4', '>i4', 'u8', 'f2', 'f4', '>f8')


def arrays():
    content = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in KINDS}
    content['transposed'] = np.arange(6.0).reshape(2, 3).T
    content['no dimension'] = np.array(1.5)
    content['empty'] = np.zeros((0, 7), np.float32)
    content['inside'] = ([(np.arange(2), [np.float32(2.5)])], np.bool_(True), np.int64(-3))
    return content


def write(tmp_path, data):
    path = tmp_path / 'infos.pkl'
    path.write_bytes(data)
    return path


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.flags.writeable and found.dtype == expected.dtype.newbyteorder('=')
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for part, value in zip(found, expected):
            assert_same(part, value)
    else:
        assert found == expected


def spelled(data, numpy_name):
    """A pickle with another name of numpy's modules, without frames: their lengths would change."""
    for op, _, place in reversed(list(pickletools.genops(data))):
        if op.name == 'FRAME':
            data = data[:place] + data[place + 9 :]
    for module in ('multiarray', 'numeric'):
        old, new = f'{OWN_NAME}.{module}'.encode(), f'{numpy_name}.{module}'.encode()
        data = data.replace(b'c' + old + b'\n', b'c' + new + b'\n')
        data = data.replace(bytes([len(old)]) + old, bytes([len(new)]) + new)
    return data


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('numpy_name', ['numpy.core', 'numpy._core'])
def test_plain_data_and_arrays_are_read(tmp_path, protocol, numpy_name):
    content = dict(PLAIN, arrays=arrays())
    data = pickle.dumps(content, protocol)
    assert_same(read_plain_pickle(write(tmp_path, data)), content)
    data = spelled(data, numpy_name)
    assert numpy_name.encode() in data
    assert_same(read_plain_pickle(write(tmp_path, data)), content)


def test_what_is_shared_stays_shared(tmp_path):
    array, inner = np.arange(3), [1]
    content = [array, dict(a=array), (array, inner), inner]
    found = read_plain_pickle(write(tmp_path, pickle.dumps(content)))
    assert found[0] is found[1]['a'] is found[2][0] and found[2][1] is found[3]
    content.append(content)
    found = read_plain_pickle(write(tmp_path, pickle.dumps(content)))
    assert found[4] is found


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def calls(marker):
    """What a file names: a pickle that does so."""
    return {
        'posix.system': Call(os.system, f'touch {marker}'),
        'builtins.eval': Call(eval, f'open({str(marker)!r}, "w")'),
        'builtins.getattr': Call(getattr, Call(getattr, Call, '__init__'), '__globals__'),
        'subprocess.check_call': Call(subprocess.check_call, ['touch', str(marker)]),
        'importlib.import_module': Call(importlib.import_module, 'antigravity'),
        'numpy.load': Call(np.load, str(marker), None, True),
        '_pickle.loads': Call(pickle.loads, b''),
        'torch._utils._rebuild_tensor_v2': torch.zeros(2),
        'collections.OrderedDict': OrderedDict(a=1),
        'builtins.set': {1, 2},
        'builtins.complex': 1j,
        'builtins.bytearray': bytearray(b'a'),
    }


@pytest.mark.parametrize('name', calls('x'))
@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_code_is_refused_by_name(tmp_path, name, protocol):
    marker = tmp_path / 'harmed'
    content = dict(metainfo={}, data_list=[calls(marker)[name]])
    path = write(tmp_path, pickle.dumps(content, protocol))
    with pytest.raises(ValueError, match='infos.pkl: .*create_data.py') as error:
        read_plain_pickle(path)
    word = name.split('.')[-1]
    assert f'.{word}, ' in str(error.value) or 'EMPTY_SET' in str(error.value)
    assert not marker.exists()


HEAD = b'\x80\x04'


def text(word):
    return b'\x8c' + bytes([len(word)]) + word.encode()


def array_of(code='f4', shape=b'K\x02\x85', raw=b'C\x08' + bytes(8), build=b''):
    """A pickled array of these parts."""
    kind = b'cnumpy\ndtype\n' + text(code) + b'\x89\x88\x87R' + build
    start = b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R'
    return HEAD + start + b'(K\x01' + shape + kind + b'\x89' + raw + b'tb.'


HOSTILE = {
    'dotted name': HEAD + text('numpy') + text('core.multiarray.scalar') + b'\x93.',
    'dotted name of a known one': HEAD + text('numpy') + text('ndarray.__class__') + b'\x93.',
    'name of no text': HEAD + b'K\x01K\x02\x93.',
    'dtype of objects': array_of('O8'),
    'dtype of texts': array_of('U1'),
    'dtype of records': array_of('V8'),
    'dtype of a list': array_of('f4,f4'),
    'dtype of a great size': array_of('V2000000000'),
    'shape too large': array_of(shape=b'J\xff\xff\xff\x7f\x85'),
    'shape overflows': array_of(shape=b'\x8a\x08' + bytes(7) + b'\x40\x85'),
    'shape negative': array_of(shape=b'J\xff\xff\xff\xff\x85'),
    'shapes negative': array_of(shape=b'J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86'),
    'shape of texts': array_of(shape=text('a') + b'\x85'),
    'bytes too short': array_of(raw=b'C\x07' + bytes(7)),
    'bytes of objects': array_of(raw=b']K\x01a'),
    'state of an array': HEAD + b'cnumpy\nndarray\n)R}b.',
    'state of the class': HEAD + b'cnumpy\nndarray\n}' + text('x') + b'K\x01sb.',
    'state of a function': HEAD + b'c_codecs\nencode\nN}' + text('__doc__') + b'K\x01s\x86b.',
    'array without a state': HEAD + b'cnumpy\nndarray\n)R.',
    'array as a key': HEAD + b'}cnumpy\nndarray\n)RNs.',
    'codec that runs code': HEAD + b'c_codecs\nencode\n' + text('a') + text('zlib') + b'\x86R.',
    'memo of gigabytes': HEAD + b'Nr\xff\xff\xff\x7f0.',
    'memo that was not written': HEAD + b'Nq\x05h\x05\x86.',
    'bytes of gigabytes': HEAD + b'\x96' + struct.pack('<q', 2**34) + b'.',
    'text of gigabytes': HEAD + b'\x8d' + struct.pack('<q', 2**62) + b'.',
    'frame of gigabytes': HEAD + b'\x95' + struct.pack('<q', 2**40) + b'N.',
    'negative length': HEAD + b'\x8d' + b'\xff' * 8 + b'.',
    'long number': HEAD + b'\x8a\xff' + b'\x01' * 255 + b'.',
    'longer number': HEAD + b'\x8b' + struct.pack('<i', 2**20) + b'\x01' * 2**20 + b'.',
    'deep tuples as a key': HEAD + b'})' + b'\x85' * 1_000_000 + b'Ns.',
    'deep tuples by the memo': HEAD + b'})q\x00' + b'0h\x00\x85q\x00' * 200_000 + b'Ns.',
    'deep tuples in pairs': HEAD + b'})' + b'N\x86' * 300_000 + b'Ns.',
    'many lists': HEAD + b'](' + b']' * 2_000_000 + b'e.',
    'many dicts': HEAD + b'](' + b'}' * 2_000_000 + b'e.',
    'marks': HEAD + b'(' * 2_000_000 + b'.',
    'extension code': HEAD + b'\x82\x2a.',
    'old opcode': b"I5\n.",
    'instance': HEAD + b'(ios\nsystem\n.',
    'persistent id': HEAD + b'Nq\x00Q.',
    'new object': HEAD + b'cnumpy\nndarray\n)\x81.',
    'two objects': HEAD + b'NN.',
    'no object': HEAD + b'.',
    'no end': HEAD + b'N',
    'open mark': HEAD + b'N(.',
    'taken over a mark': HEAD + b'N(\x85.',
    'no mark': HEAD + b'Nt.',
    'nothing': b'',
    'zeros': bytes(100),
    'text file': b'no pickle at all',
    'unfinished name': HEAD + b'cnumpy\nndarr',
}  # fmt: skip


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_files_are_refused(tmp_path, name):
    path = write(tmp_path, HOSTILE[name])
    with pytest.raises(ValueError, match='infos.pkl: .*create_data.py'):
        measured(path)


def measured(path):
    """The content of a file; an error if it takes ten times the file's size, or a second."""
    size = path.stat().st_size
    begin = time.perf_counter()
    tracemalloc.start()
    try:
        return read_plain_pickle(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10 * size + 2**20, f'{peak:,} bytes for a file of {size:,}'
        assert time.perf_counter() - begin < 5


def test_the_parts_of_the_hostile_files_are_right(tmp_path):
    assert read_plain_pickle(write(tmp_path, array_of())).tolist() == [0, 0]
    assert read_plain_pickle(write(tmp_path, HEAD + b'Nq\x00h\x00\x86.')) == (None, None)


def test_bytes_named_many_times_are_not_copied(tmp_path):
    large = (
        b'X' + struct.pack('<i', 100_000) + b'a' * 100_000 + b'q\x00' + text('latin1') + b'q\x01'
    )
    encode = b'c_codecs\nencode\nh\x00h\x01\x86R'
    data = HEAD + large + b'](' + encode * 2000 + b'e\x87.'
    with pytest.raises(ValueError, match='more bytes than the file'):
        measured(write(tmp_path, data))


def test_arrays_of_the_same_bytes_are_not_copied(tmp_path):
    raw = b'B' + struct.pack('<i', 100_000) + bytes(100_000)
    state = b'(K\x01J' + struct.pack('<i', 100_000) + b'\x85cnumpy\ndtype\n' + text('u1')
    state += b'\x85R\x89' + raw + b'tq\x00'
    array = b'cnumpy.core.multiarray\n_reconstruct\n)Rh\x00b'
    data = HEAD + state + b'](' + array * 1000 + b'e\x86.'
    with pytest.raises(ValueError, match='more memory than the file'):
        measured(write(tmp_path, data))


def test_shared_tuples_are_visited_once(tmp_path):
    """Sixty tuples that contain the one before twice: 2^60 paths."""
    content = [np.arange(2)]
    for _ in range(60):
        content = (content, content)
    found = measured(write(tmp_path, pickle.dumps(content)))
    while isinstance(found, tuple):
        found = found[0]
    assert found[0].tolist() == [0, 1]


PARTS = {
    'large dicts': (b'}(' + b''.join(b'K' + bytes([k]) + b'N' for k in range(86)) + b'u') * 300,
    'small dicts': b'](' + b'}K\x01Ns' * 20_000 + b'e',
    'lists': b'](' + b']' * 20_000 + b'e',
    'tuples': b'](' + b'N\x85' * 20_000 + b'e',
    'texts': b'](' + b'\x8c\x02ab' * 20_000 + b'e',
    'memo': b'N' + b'\x94' * 50_000,
}


@pytest.mark.parametrize('part', PARTS)
def test_a_pickle_takes_no_more_than_its_limit(monkeypatch, part):
    """Without what small files may take; a long text makes room for the part."""
    monkeypatch.setattr(pickle_scan, '_SLACK', 0)
    read = 0
    for room in range(0, 12 * len(PARTS[part]), len(PARTS[part]) // 2):
        padding = b'X' + struct.pack('<i', room) + b'a' * room
        data = b'\x80\x04(' + PARTS[part] + padding + b't.'
        tracemalloc.start()
        try:
            read_plain_pickle(io.BytesIO(data))
            read += 1
        except DamagedPickle as error:
            assert 'more than 20 times' in str(error)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20 * len(data) + 2**18  # of the buffer
    assert read


def test_registered_extension_codes_are_refused(tmp_path):
    copyreg.add_extension('posix', 'system', 0xF7)
    try:
        pickle.loads(HEAD + b'\x82\xf7.')  # now it is in the cache that find_class does not see
        with pytest.raises(ValueError, match='EXT1'):
            read_plain_pickle(write(tmp_path, HEAD + b'\x82\xf7' + text('true') + b'\x85R.'))
    finally:
        copyreg.remove_extension('posix', 'system', 0xF7)


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_mutated_files_are_refused_or_plain(tmp_path, protocol):
    draw = random.Random(protocol)
    whole = pickle.dumps(dict(PLAIN, texts=['x' * 70], arrays=arrays()), protocol)
    refused = 0
    for _ in range(150):
        path = write(tmp_path, mutate(whole, draw))
        try:
            measured(path)
        except ValueError as error:
            assert str(error).startswith(f'{path}: ')
            refused += 1
    assert 50 < refused < 150
    assert np.dtype('f8').isnative and np.zeros(2).sum() == 0


def test_truncated_files_are_damaged(tmp_path):
    whole = pickle.dumps(dict(PLAIN, texts=[], arrays=arrays()))
    for size in range(0, len(whole), 7):
        with pytest.raises(DamagedPickle, match='damaged'):
            read_plain_pickle(write(tmp_path, whole[:size]))


def test_mmengine_reads_by_it(tmp_path):
    marker = tmp_path / 'harmed'
    content = dict(arrays(), evil=Call(os.mkdir, str(marker)))
    for name in ('infos.pkl', 'infos.pickle'):
        path = tmp_path / name
        mmengine.dump(arrays(), path)
        assert_same(mmengine.load(path), arrays())
        mmengine.dump(content, path)
        with pytest.raises(ValueError, match='posix.mkdir'):
            mmengine.load(path)
        with path.open('rb') as file, pytest.raises(ValueError, match=f'{name}: .*posix.mkdir'):
            mmengine.load(file, file_format='pkl')
    assert not marker.exists()
