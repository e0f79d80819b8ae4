"""Rules of the repository that no reviewer should have to check by eye."""

import ast
import re
import subprocess
import sys

import pytest

from tests import density

# who may import whom, inside the package; simulation and visualization stand alone, evaluation but
# reads files
ALLOWED = {
    'ops': {'ops', 'jit'},
    'layers': {'ops', 'layers'},
    'testing': {'ops'},
    'checkpoints': {'plain_arrays', 'shipped'},
    'datasets': {
        'datasets',
        'ground',
        'jit',
        'memory',
        'plain_arrays',
        'resumable',
        'sensors',
    },
    'models': {'ops', 'layers', 'models'},
    'engine': {'engine', 'checkpoints', 'commands', 'datasets', 'memory', 'resumable'},
    'plugin': {'models', 'engine', 'checkpoints', 'datasets', 'evaluation', 'visualization'},
    'apis': {
        'layers',
        'models',
        'checkpoints',
        'datasets',
        'detections',
        'frame_checks',
        'sensors',
        'shipped',
    },
    'deploy': {'deploy', 'detections', 'layers', 'models', 'ops', 'sensors'},
    'detections': set(),
    'cli': {
        'apis',
        'cli',
        'commands',
        'config_options',
        'datasets',
        'deploy',
        'evaluation',
        'host',
        'memory',
        'resumable',
        'sensor_options',
        'sensors',
        'shipped',
        'simulation',
        'visualization',
    },
    'frame_checks': {'ground', 'sensors'},
    'sensors': {'ground'},
    'sensor_options': {'sensors'},
    'ground': set(),
    'commands': set(),
    'config_options': set(),
    'host': {'commands', 'config_options'},
    'jit': set(),
    'memory': set(),
    'plain_arrays': set(),
    'resumable': set(),
    'shipped': set(),
    'doctor': {'commands', 'doctor', 'layers', 'ops', 'plugin', 'testing'},
    'simulation': {'simulation', 'jit', 'resumable'},
    'evaluation': {'evaluation', 'datasets', 'jit', 'resumable'},
    'visualization': {'visualization'},
}
# third parties that a part may import at its top
BARE = {
    'ops': {'torch'},
    'evaluation': {'numpy', 'numba', 'scipy', 'google', 'tqdm', 'mmengine', 'mmdet3d', 'nuscenes'},
    'simulation': {'numpy', 'numba', 'tqdm'},
}
LAZY = {'open3d', 'matplotlib'}


def modules(root):
    for path in sorted((root / 'stratified3d').rglob('*.py')):
        part = path.relative_to(root / 'stratified3d').parts[0].removesuffix('.py')
        if part != '__init__':
            yield path, part, ast.parse(path.read_text())


def imported(tree, nested=True):
    """Dotted names imported anywhere, or only at the top of the module."""
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, 'imports are absolute'
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def test_imports_point_in_one_direction(root):
    for path, part, tree in modules(root):
        used = {name.split('.')[1] for name in imported(tree) if name.startswith('stratified3d.')}
        used -= {'__version__'}
        assert used <= ALLOWED[part], f'{path} imports {used - ALLOWED[part]}'


def test_ops_need_torch_alone(root):
    standard = set(sys.stdlib_module_names)
    for path, part, tree in modules(root):
        tops = (
            {name.split('.')[0] for name in imported(tree, nested=False)}
            - standard
            - {'stratified3d'}
        )
        if path.parent.name == 'kernels' and path.name != '__init__.py':
            tops -= {'triton'}  # kernels: loaded with the first call
        if path.parent.name == 'cpu' and path.name != '__init__.py':
            tops -= {'numba', 'llvmlite', 'numpy'}  # so are these
        if part in BARE:
            assert tops <= BARE[part], f'{path} imports {tops - BARE[part]}'
        assert not tops & LAZY, (
            f'{path} imports {tops & LAZY} at its top: these load slowly and may be missing'
        )
        assert 'spconv' not in tops or path.name == 'sparse_conv.py', (
            f'{path}: only sparse_conv.py imports spconv'
        )


def test_ops_import_without_openmmlab():
    blocked = (
        'import sys\n'
        'for name in ("mmengine", "mmcv", "mmdet", "mmdet3d", "spconv", "numba", "open3d", '
        '"stratified3d.ops.stratified_attention.kernels.launch"):\n'
        '    sys.modules[name] = None\nimport stratified3d.ops\n'
    )
    subprocess.run([sys.executable, '-c', blocked], check=True)


def test_packaged_detectors_run_without_openmmlab():
    blocked = (
        'import sys\n'
        'for name in ("mmengine", "mmcv", "mmdet", "mmdet3d", "spconv", "numba", "scipy"):\n'
        '    sys.modules[name] = None\nfrom stratified3d.deploy import load\n'
        'from stratified3d.datasets.io.point_cloud2 import read_point_cloud2\n'
    )
    subprocess.run([sys.executable, '-c', blocked], check=True)


def tracked(root):
    listing = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard'],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return [root / line for line in listing.stdout.splitlines() if (root / line).is_file()]


def test_names_say_something(root):
    bad = re.compile(r'(^|/)(utils?|common|helpers?|misc)(\.py|/)|_(v2|new|old|backup|legacy)\.py$')
    assert not [p for p in tracked(root) if bad.search(str(p.relative_to(root)))]


def test_files_stay_readable(root):
    for path in tracked(root):
        if path.suffix in ('.py', '.sh'):
            lines = len(path.read_text().splitlines())
            assert lines <= 400, f'{path} has {lines} lines'


def test_folders_of_the_package_have_three_to_ten_files(root):
    for folder in {path.parent for path, *_ in modules(root)} - {root / 'stratified3d'}:
        files = [path for path in folder.glob('*.py') if path.name != '__init__.py']
        folders = [path for path in folder.iterdir() if (path / '__init__.py').is_file()]
        count = len(files) + len(folders)
        assert 3 <= count <= 10, f'{folder} has {count} files and folders'


def test_code_stays_loose():
    for folder, functions in density.measure_folders().items():
        median = density.median_density(functions)
        assert median <= 5.0, f'{folder}: {median:.2f} leaves per code line in the median function'


def test_functions_stay_short():
    functions = [f for path in density.tracked_files() for f in density.measure(path)]
    long = [f'{f.path}:{f.line} {f.name}: {f.lines} lines' for f in functions if f.lines > 60]
    assert not long, long


def test_nothing_shadows_mmdet3d(root):
    assert (
        not (root / 'tools/__init__.py').exists() and not (root / 'projects/__init__.py').exists()
    )


@pytest.mark.parametrize(
    'part',
    ['ops', 'layers', 'models', 'engine', 'evaluation', 'datasets', 'deploy', 'visualization'],
)
def test_public_functions_and_classes_are_documented(root, part):
    for path in sorted((root / 'stratified3d' / part).rglob('*.py')):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree) or not tree.body, path
        if (
            path.parent.name == 'kernels'
            or path.parent.name == 'stratified_attention'
            and path.name != '__init__.py'
        ):
            continue  # backends share the docstrings of the functions that call them
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
                assert ast.get_docstring(node), f'{path}: {node.name}'
