"""Configs and weights that come with the package, by names such as
`stratified3d::stratified/NAME.py`.

mmengine and mim find configs by such names in a fixed list of packages. `register_names` adds this
package to it when the package is imported. The wheel has a line that does so when Python starts
(stratified3d.pth), for mmdet3d's own scripts. That imports nothing but this file, and this file
nothing but `os` and `sys`: it must cost no command any time.
"""

from __future__ import annotations

import os
import sys

PREFIX = 'stratified3d::'
_PACKAGE = os.path.dirname(os.path.abspath(__file__))


def shipped_root() -> str:
    """Return the folder that contains configs/, projects/ and tools/: the wheel's, or the
    repository."""
    installed = os.path.join(_PACKAGE, '.mim')
    return installed if os.path.isdir(installed) else os.path.dirname(_PACKAGE)


def find_shipped(name: str) -> str:
    """Return the path of a file that comes with the package.

    Args:
        name: 'stratified3d::FOLDER/FILE': a file of configs/FOLDER, of projects/FOLDER/configs or
            of projects/FOLDER, such as 'stratified3d::quickstart/any-sensor.safetensors'. Names
            without the prefix are paths, and are returned as they are.
    Raises:
        FileNotFoundError: there is no such file; the message lists those of the folder.
    """
    if not name.startswith(PREFIX):
        return name
    root = shipped_root()
    folder, _, file = name.removeprefix(PREFIX).partition('/')
    places = [os.path.join(root, part) for part in _places(folder)]
    for place in places:
        path = os.path.join(place, file)
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(
        f'{name}: no such file; there are {", ".join(list_shipped()) or "none"}'
    )


def list_shipped() -> list[str]:
    """Return the names of all configs and weights that come with the package."""
    root = shipped_root()
    projects = os.path.join(root, 'projects')
    folders = ['stratified', *(sorted(os.listdir(projects)) if os.path.isdir(projects) else ())]
    names = []
    for folder in folders:
        configs, project_configs, project = (os.path.join(root, part) for part in _places(folder))
        for place, ending in (
            (configs, '.py'),
            (project_configs, '.py'),
            (project, '.safetensors'),
        ):
            files = sorted(os.listdir(place)) if os.path.isdir(place) else []
            names += [f'{PREFIX}{folder}/{file}' for file in files if file.endswith(ending)]
    return names


def _places(folder: str) -> tuple[str, ...]:
    return f'configs/{folder}', f'projects/{folder}/configs', f'projects/{folder}'


def make_projects_importable() -> None:
    """Let configs import `projects.NAME`, wherever the command was started."""
    root = shipped_root()
    if root not in sys.path:
        sys.path.append(root)


def register_names() -> None:
    """Make mmengine's configs and mim's commands understand the names of this package.

    What is imported already is changed now, the rest when it is imported.
    """
    for name, change in _CHANGES.items():
        module = sys.modules.get(name)
        if module is not None:
            change(module)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds nothing itself; changes the modules of `_CHANGES` when they have been imported."""

    def find_spec(self, name, path=None, target=None):
        change = _CHANGES.get(name)
        if change is None:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, 'find_spec'):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                execute = spec.loader.exec_module

                def execute_and_change(module, execute=execute):
                    execute(module)
                    change(module)

                spec.loader.exec_module = execute_and_change
                return spec
        return None


def _change_config(module) -> None:
    """Names in `Config.fromfile` and in `_base_`."""
    config = module.Config
    if hasattr(config, '_stratified3d'):
        return
    config._stratified3d = True
    # for mmengine.hub
    sys.modules['mmengine.config.utils'].MODULE2PACKAGE['stratified3d'] = 'stratified3d'
    read_file, find_base = config.fromfile, config._get_cfg_path

    def fromfile(filename, *args, **kwargs):
        return read_file(_find_config(filename), *args, **kwargs)

    def find_base_of_any(cfg_path, filename):
        if not cfg_path.startswith(PREFIX):
            return find_base(cfg_path, filename)
        # the parts of these configs are registered in mmdet3d's scope, not in one of their own
        return _find_config(cfg_path), None

    fromfile.__doc__ = read_file.__doc__
    config.fromfile = staticmethod(fromfile)
    config._get_cfg_path = staticmethod(find_base_of_any)


def _change_mim(module) -> None:
    """Names after `mim train mmdet3d` and `mim test mmdet3d`: mim looks for the last part of a path
    that does not exist among the files of mmdet3d, and now among ours, too."""
    find = module.recursively_find
    if hasattr(find, '_stratified3d'):
        return

    def find_here_too(root, base_name, followlinks=False):
        files = find(root, base_name, followlinks=followlinks)
        if files:
            return files
        return [find_shipped(name) for name in list_shipped() if name.endswith(f'/{base_name}')]

    find_here_too.__dict__['_stratified3d'] = True
    module.recursively_find = find_here_too


def _find_config(name):
    if isinstance(name, str) and name.startswith(PREFIX):
        make_projects_importable()
        return find_shipped(name)
    return name


_CHANGES = {
    'mmengine.config.config': _change_config,
    'mim.utils': _change_mim,
}
