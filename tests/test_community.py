"""What strangers read first says what is true: versions, variables, forms and the workflow."""

import re
import subprocess

import pytest
import yaml

from stratified3d import __version__


@pytest.fixture
def sources(root):
    """Text of all scripts and Python files, by path."""
    listing = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard', '*.py', '*.sh'],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        path: (root / path).read_text()
        for path in listing.stdout.split()
        if (root / path).is_file()
    }


def test_version_is_the_same_everywhere(root):
    assert yaml.safe_load((root / 'CITATION.cff').read_text())['version'] == __version__
    assert re.search(r'^## (\S+)', (root / 'CHANGELOG.md').read_text(), re.M)[1] == __version__


def test_table_of_variables_is_complete(root, sources):
    pattern = re.compile(
        r'\b(?:STRATIFIED3D_(?!PARENT)|(?:NUSCENES|WAYMO|CUSTOM|PRETRAIN)_ROOT)\w*'
    )
    used = {name for text in sources.values() for name in pattern.findall(text)}
    page = (root / 'CONTRIBUTING.md').read_text()
    table = page.split('## Environment variables')[1].split('\n## ')[0]
    assert used - {'STRATIFIED3D_'} == set(pattern.findall(table))


def test_forms_are_forms(root):
    for path in (root / '.github/ISSUE_TEMPLATE').glob('*.yml'):
        form = yaml.safe_load(path.read_text())
        if path.stem == 'config':
            continue
        assert {'name', 'description', 'body'} <= form.keys(), path
        ids = [item['id'] for item in form['body'] if item['type'] != 'markdown']
        assert len(ids) == len(set(ids)) >= 1
        for item in form['body']:
            assert item['type'] in ('textarea', 'input', 'dropdown', 'markdown'), path
            assert 'label' in item['attributes'] or item['type'] == 'markdown', path


def test_workflow_runs_what_there_is(root):
    text = (root / '.github/workflows/ci.yml').read_text()
    workflow = yaml.safe_load(text)
    triggers = workflow[True]  # YAML reads the key `on` so
    assert {'push', 'pull_request', 'schedule'} <= triggers.keys()
    versions = workflow['jobs']['fast']['strategy']['matrix']['python']
    metadata = (root / 'pyproject.toml').read_text()
    assert versions == re.findall(r'Python :: (3\.\d+)"', metadata)
    steps = [step for job in workflow['jobs'].values() for step in job['steps']]
    assert all(('uses' in step) != ('run' in step) for step in steps)
    commands = '\n'.join(step['run'] for step in steps if 'run' in step)
    for path in re.findall(r'(?:tools|\.ci)/[\w./]+', commands):
        assert (root / path).is_file(), path
    for job in workflow['jobs'].values():
        assert job['timeout-minutes'] < 360 and job['runs-on'] == 'ubuntu-24.04'


def test_extras_that_pages_name_exist(root):
    metadata = (root / 'pyproject.toml').read_text()
    extras = set(
        re.findall(r'^(\w+) = \[', metadata.split('[project.optional-dependencies]')[1], re.M)
    )
    pages = [root / 'README.md', *(root / 'docs').glob('*.md')]
    named = {
        extra.strip()
        for path in [*pages, root / 'tools/setup.sh', root / '.github/workflows/ci.yml']
        for group in re.findall(r'\.\[([\w,$]+)\]', path.read_text())
        for extra in group.replace('$device', 'cpu').split(',')
    }
    assert named and named <= extras
    table = (root / 'docs/install.md').read_text()
    assert all(
        f'`{extra}`' in table
        for extra in extras - {'find', 'dynamic'}
        if extra in named | {'waymo'}
    )
