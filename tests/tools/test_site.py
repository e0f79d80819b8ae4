"""The documentation's site."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest


def read_nav(root):
    text = (root / 'tools/site/mkdocs.yml').read_text()
    return re.findall(r'[\w./-]+\.md\b', text.split('\nnav:')[1])


def test_every_page_is_in_the_navigation(root):
    named = read_nav(root)
    assert len(named) == len(set(named))
    pages = {str(path.relative_to(root / 'docs')) for path in (root / 'docs').rglob('*.md')}
    assert pages <= {*named}
    for name in named:
        assert (root / 'docs' / name).is_file() or (root / name).is_file(), name


@pytest.mark.slow
def test_site_builds_without_a_warning(root, tmp_path):
    for name in ('mkdocs', 'material', 'mkdocstrings'):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f'{name} is not installed: pip install ".[docs]"')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict']
    result = subprocess.run(
        [*command, '--config-file', 'tools/site/mkdocs.yml', '--site-dir', str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    reference = (tmp_path / 'reference/apis/index.html').read_text()
    assert 'Detect objects in one point cloud.' in reference and '_find_change' not in reference
    assert '>Returns:<' in reference and ' Raises: ' not in reference  # sections are apart
    home = (tmp_path / 'index.html').read_text()
    assert 'href="projects/quickstart/#what-to-expect"' in home and 'detection.png' in home
