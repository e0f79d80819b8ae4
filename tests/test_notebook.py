import os
import re

import pytest

pytestmark = pytest.mark.slow


def test_the_notebook_runs(root, tmp_path):
    """All cells, in a kernel of its own; the weights find most cars of the frame."""
    nbformat = pytest.importorskip('nbformat')
    nbclient = pytest.importorskip('nbclient', reason='pip install ".[notebook]"')
    pytest.importorskip('ipykernel', reason='pip install ".[notebook]"')
    notebook = nbformat.read(root / 'docs/first_steps.ipynb', as_version=4)
    assert not any(cell.get('outputs') for cell in notebook.cells), 'outputs are not kept'
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name='python3', resources=dict(metadata=dict(path=tmp_path))
    )
    client.execute(env={**os.environ, 'PYTHONPATH': str(root)})
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    text = ''.join(output.get('text', '') for output in outputs)
    hits, count = map(int, re.search(r'^car +(\d+) of (\d+)$', text, re.MULTILINE).groups())
    assert count >= 5 and hits >= count / 2
    pictures = [output for output in outputs if 'image/png' in output.get('data', {})]
    assert len(pictures) == 2 and re.search(r'\d+ tokens, \d+ voxels', text)
