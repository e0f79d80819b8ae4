"""Adds the files outside the package to the wheel; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

# what stratified3d/.mim of the wheel contains: where mim and mmengine look for configs and scripts
SHIPPED = (
    'configs/**/*.*',
    'projects/**/*.py',
    'projects/**/*.md',
    'projects/**/*.yml',
    'projects/**/*.safetensors',
    *(
        f'tools/{name}.py'
        for name in (
            'convert_custom',
            'create_data',
            'export',
            'export_weights',
            'overfit_frame',
            'quickstart',
            'simulate',
            'test',
            'train',
            'visualize',
            'waymo_convert',
            'waymo_eval',
        )
    ),
)
# Python runs this line at its start: mmdet3d's own scripts understand `stratified3d::` names then
STARTUP = ('stratified3d.pth', 'import stratified3d\n')


def shipped_files() -> list[Path]:
    found = {path for pattern in SHIPPED for path in Path().glob(pattern)}
    return sorted(path for path in found if path.is_file() and '__pycache__' not in path.parts)


class BuildWithConfigs(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # the files of the repository are found there
        folder = Path(self.build_lib) / 'stratified3d' / '.mim'
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
        for path in shipped_files():
            (folder / path.parent).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path)
        shutil.move(folder / 'configs/model-index.yml', folder / 'model-index.yml')
        name, line = STARTUP
        (Path(self.build_lib) / name).write_text(line)


class SourcesWithConfigs(sdist):
    def add_defaults(self) -> None:
        super().add_defaults()
        self.filelist.extend(map(str, shipped_files()))


setup(cmdclass={'build_py': BuildWithConfigs, 'sdist': SourcesWithConfigs})
