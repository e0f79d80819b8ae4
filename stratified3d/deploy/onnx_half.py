"""The dense half of a detector, BEV feature map to boxes, as ONNX.

The sparse half has no ONNX operators that would be fast: batched products over tiles and padded
windows whose number depends on the data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stratified3d.deploy.program import DetectorProgram


class DenseHalf(nn.Module):
    """BEV feature map [1, C, Y, X] -> boxes, scores, labels, their number, see `decode_boxes`."""

    def __init__(self, program: DetectorProgram):
        super().__init__()
        self.program = program

    def forward(self, bev: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return `DetectorProgram.detect`."""
        return self.program.detect(bev)


def _stable_sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """aten::sort.stable, which torch's exporter lacks: TopK keeps the order of equal values."""
    from onnxscript import opset18

    op: Any = opset18
    count = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


def export_onnx(program: DetectorProgram, out: str | Path) -> None:
    """Write the dense half of a program in fp32 as an .onnx file.

    Raises:
        ImportError: onnx or onnxscript are not installed.
    """
    _, rows, columns = program.encoder.out_shape
    bev = torch.zeros(1, program.encoder.out_channels, rows, columns)
    with torch.no_grad():
        traced = torch.export.export(DenseHalf(program), (bev,))
    torch.onnx.export(
        traced,
        (bev,),
        str(out),
        dynamo=True,
        external_data=False,
        custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
        input_names=['bev'],
        output_names=['boxes', 'scores', 'labels', 'count'],
    )
