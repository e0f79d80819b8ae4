import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData


@pytest.fixture
def build_head():
    """Build a head from its config, always with the same weights."""

    def build(**config):
        torch.manual_seed(0)
        return MODELS.build(config)

    return build


@pytest.fixture
def pack_boxes():
    """InstanceData of boxes [K, 7 or 9] with bottom centers and labels [K]."""

    def pack(boxes, labels):
        boxes = LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[1])
        return InstanceData(bboxes_3d=boxes, labels_3d=labels)

    return pack


@pytest.fixture
def random_encodings():
    """Encodings of boxes with centers in 0 to extent (x, y) cells, sizes near those of cars."""

    def draw(count, seed, size=8, extent=(1, 1), z_scale=1.0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        encoding = torch.randn(count, size, generator=generator, dtype=dtype)
        center = torch.rand(count, 2, generator=generator, dtype=dtype)
        encoding[:, :2] = center * torch.tensor(extent)
        encoding[:, 2] *= z_scale
        encoding[:, 3:6] = encoding[:, 3:6] / 4 + torch.tensor([1.2, 0.6, 0.4])
        return encoding

    return draw
