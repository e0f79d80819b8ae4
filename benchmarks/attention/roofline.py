"""Roofline of `benchmark.py ops`: what the device allows, and how close each attention gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], path: Path) -> None:
    """Plot GFLOP/s over FLOP per byte, of the forward pass of all that compute the same function.

    Operations and bytes are those of the equation, the same for every method: padding and copies
    show as distance from the ceilings.
    """
    import matplotlib

    matplotlib.use('Agg')
    import numpy as np
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5.5), layout='constrained')
    bandwidth = result['ceilings']['copy_gb_s']
    peak = result['ceilings']['matmul_gflop_s']
    intensity = np.logspace(-1, 4, 100)
    roof = np.minimum(peak, bandwidth * intensity)
    axis.loglog(intensity, roof, color='black', label='measured ceilings')

    rows = [row for row in result['rows'] if row['group'] != 'other']
    names = list(dict.fromkeys(row['name'] for row in rows))
    colors = pyplot.get_cmap('tab10')
    for row in rows:
        if not row.get('forward_ms'):
            continue
        limit = result['limits'][row['point_cloud']]
        flops = limit['flops_ms'] * peak
        axis.plot(
            flops / (limit['bytes_ms'] * bandwidth),
            flops / row['forward_ms'].median,
            marker='*' if row['group'] == 'ours' else 'o',
            linestyle='',
            color=colors(names.index(row['name']) % 10),
            label=row['name'],
        )

    handles, labels = axis.get_legend_handles_labels()
    by_label = dict(zip(labels, handles))
    axis.legend(by_label.values(), by_label.keys(), fontsize=8)
    axis.set(
        xlabel='FLOP per byte',
        ylabel='GFLOP/s, forward',
        title='Stratified attention, all variants and point clouds',
    )
    axis.grid(True, which='both', alpha=0.2)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
