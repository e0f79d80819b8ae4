"""The dense half in onnxruntime gives the boxes of the program."""

import numpy as np
import pytest
import torch

pytest.importorskip('onnxscript', reason='needs onnx, onnxscript and onnxruntime: extra `deploy`')
onnxruntime = pytest.importorskip('onnxruntime')


@pytest.mark.slow
def test_dense_half_in_onnxruntime_equals_the_program(detector, frame, tmp_path):
    from stratified3d.deploy.onnx_half import export_onnx
    from stratified3d.deploy.program import DetectorProgram

    program = DetectorProgram(detector)
    export_onnx(program, tmp_path / 'half.onnx')
    session = onnxruntime.InferenceSession(str(tmp_path / 'half.onnx'))
    for count in (1, 900):
        with torch.no_grad():
            bev, _ = program.encode(torch.from_numpy(frame(count)))
            *expected, number = program.detect(bev)
        *found, found_number = session.run(None, {'bev': bev.numpy()})
        assert found_number == number
        np.testing.assert_allclose(found[1], expected[1], atol=1e-4)
        np.testing.assert_allclose(found[0], expected[0], atol=1e-3)
