"""Running the scripts that mmdet3d installs with its package, so that users need no clone of it."""
from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path


def run_host_tool(name: str) -> None:
    """Run mmdet3d's own tools/<name> in this process, with this process's arguments.

    Raises:
        FileNotFoundError: the installed mmdet3d ships no such script.
    """
    # threads that spin at a barrier starve the one that they wait for as soon as anything else runs, and loader
    # processes always do; read when torch is imported
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    import mmdet3d

    script = Path(mmdet3d.__file__).parent / '.mim' / 'tools' / name
    if not script.is_file():
        raise FileNotFoundError(f'mmdet3d {mmdet3d.__version__} has no {script}: reinstall it from its wheel '
                                '(pip install --force-reinstall --no-deps mmdet3d==1.4.0)')
    sys.argv[0] = str(script)
    runpy.run_path(str(script), run_name='__main__')
