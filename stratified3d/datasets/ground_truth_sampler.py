"""Ground-truth sampling under the numpy versions that mmdet3d 1.4's own sampler fails with."""
from __future__ import annotations

from unittest import mock

import numpy as np
from mmdet3d.datasets.transforms.dbsampler import DataBaseSampler
from mmdet3d.registry import TRANSFORMS


@TRANSFORMS.register_module()
class GroundTruthSampler(DataBaseSampler):
    """mmdet3d's DataBaseSampler, arguments and all; `db_sampler=dict(type='GroundTruthSampler', ...)` selects it.

    `DataBaseSampler.sample_all` asks for np.long, which numpy 1.24 to 1.26 do not have: training stops in the first
    batch. The name is lent to it for the duration of the call.
    """

    def sample_all(self, *args, **kwargs) -> dict | None:
        """Sampled boxes, labels and points of one frame, see DataBaseSampler.sample_all."""
        with mock.patch.object(np, 'long', np.int64, create=True):
            return super().sample_all(*args, **kwargs)
