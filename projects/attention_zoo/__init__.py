"""Attention of other LiDAR detectors and of libraries, as mixers of the stratified encoder.

README.md lists them; all are plain torch modules, and register.py makes them known to mmdet3d.
"""

from projects.attention_zoo.equal_groups import EqualGroupAttention
from projects.attention_zoo.flex import FlexAttention
from projects.attention_zoo.full import FullAttention
from projects.attention_zoo.linear import LinearWindowAttention, PerformerAttention
from projects.attention_zoo.mixer import Baseline, JointBaseline
from projects.attention_zoo.nested import NestedAttention
from projects.attention_zoo.padded import SSTAttention, SwinAttention
from projects.attention_zoo.planes import PlaneAttention
from projects.attention_zoo.reduced import LinformerAttention, SpatialReductionAttention
from projects.attention_zoo.sampled import SampledWindowAttention
from projects.attention_zoo.sets import SetAttention
from projects.attention_zoo.varlen import VarlenAttention

# mixers that compute the same function as StratifiedAttention
SAME_FUNCTION = (SwinAttention, SSTAttention, VarlenAttention, FlexAttention, NestedAttention)
# mixers that compute another function, without strata tokens
OTHER_FUNCTION = (
    FullAttention,
    SetAttention,
    EqualGroupAttention,
    LinearWindowAttention,
    PlaneAttention,
    SampledWindowAttention,
    SpatialReductionAttention,
    PerformerAttention,
    LinformerAttention,
)

__all__ = [
    'OTHER_FUNCTION',
    'SAME_FUNCTION',
    'Baseline',
    'JointBaseline',
    *(kind.__name__ for kind in SAME_FUNCTION + OTHER_FUNCTION),
]
