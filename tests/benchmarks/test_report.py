import json
import re

import torch

from benchmarks import report


def test_tables_in_files_have_no_padding(root):
    rows = [['method', 'ms', 'note'], ['ours', '1.5', ''], ['a | b', '12', 'x' * 80]]
    table = report.table([[cell.replace('|', '/') for cell in row] for row in rows])
    assert report.compact(f'Head\n\n{table}\n\ntail  kept').split('\n') == [
        'Head',
        '',
        '| method | ms | note |',
        '| --- | ---: | ---: |',
        '| ours | 1.5 |  |',
        f'| a / b | 12 | {"x" * 80} |',
        '',
        'tail  kept',
    ]
    for path in (root / 'benchmarks/results').glob('*/*.md'):
        assert path.read_text() == report.compact(path.read_text()), path


def test_results_come_from_commits(root, tmp_path, monkeypatch, capsys):
    paths = [*(root / 'benchmarks/results').glob('*/*.json')]
    commits = {path: json.loads(path.read_text())['environment']['commit'] for path in paths}
    bad = {
        path: commit for path, commit in commits.items() if not re.fullmatch('[0-9a-f]{12}', commit)
    }
    assert paths and not bad

    monkeypatch.chdir(tmp_path)
    machine = report.environment(torch.device('cpu'), torch.float32)
    content = dict(environment=dict(machine, commit='0123456789ab-dirty'), rows=[1])
    folder = report.save(report.RESULTS, 'test', content, '| a |')
    assert folder.resolve().parent == tmp_path / 'work_dirs/results'
    assert 'commit, then run it again' in capsys.readouterr().err
    assert json.loads((folder / 'test.json').read_text())['rows'] == [1]
    clean = dict(machine, commit='0123456789ab')
    assert report.keep_out_of_results(report.RESULTS, clean) == report.RESULTS
