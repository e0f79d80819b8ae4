"""The roofline of a run of `benchmark.py ops`: what the device allows, and how close each attention
comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], path: Path) -> None:
    """GFLOP/s over FLOP per byte, forward pass, of ours and of those that compute the same
    function.

    Operations and bytes are those of the equation, the same for everyone: padding and copies show
        as distance.
    """
    import matplotlib

    matplotlib.use('Agg')
    import numpy as np
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5.5), layout='constrained')
    bandwidth, peak = (result['ceilings'][name] for name in ('copy_gb_s', 'matmul_gflop_s'))
    intensity = np.logspace(-1, 4, 100)
    axis.loglog(
        intensity, np.minimum(peak, bandwidth * intensity), color='black', label='measured ceilings'
    )
    names = list(dict.fromkeys(row['name'] for row in result['rows'] if row['group'] != 'other'))
    for row in result['rows']:
        limit = result['limits'][row['cloud']]
        if row['name'] in names and row.get('forward_ms'):
            flops = limit['flops_ms'] * peak
            axis.plot(
                flops / (limit['bytes_ms'] * bandwidth),
                flops / row['forward_ms'].median,
                marker='*' if row['group'] == 'ours' else 'o',
                linestyle='',
                color=pyplot.get_cmap('tab10')(names.index(row['name']) % 10),
                label=row['name'],
            )
    handles = dict(zip(*reversed(axis.get_legend_handles_labels())))
    axis.legend(handles.values(), handles.keys(), fontsize=8)
    axis.set(
        xlabel='FLOP per byte',
        ylabel='GFLOP/s, forward',
        title='Stratified attention, all settings and clouds',
    )
    axis.grid(True, which='both', alpha=0.2)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
