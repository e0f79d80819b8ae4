"""Attention of other LiDAR detectors and of libraries, as mixers of the stratified encoder.

README.md lists them; all are plain torch modules, and register.py makes them known to mmdet3d.
"""

from projects.attention_zoo.keys.dilated import DilatedAttention
from projects.attention_zoo.keys.focal import FocalAttention
from projects.attention_zoo.keys.full import FullAttention
from projects.attention_zoo.keys.routed import RoutedAttention
from projects.attention_zoo.keys.sampled import SampledWindowAttention
from projects.attention_zoo.keys.sliding import SlidingAttention
from projects.attention_zoo.keys.varied import VariedWindowAttention
from projects.attention_zoo.keys.varying import VaryingWindowAttention
from projects.attention_zoo.layouts.flex import FlexAttention
from projects.attention_zoo.layouts.nested import NestedAttention
from projects.attention_zoo.layouts.padded import SSTAttention, SwinAttention
from projects.attention_zoo.layouts.varlen import VarlenAttention
from projects.attention_zoo.mixer import Baseline, JointBaseline
from projects.attention_zoo.summaries.concentrated import ConcentratedLinearAttention
from projects.attention_zoo.summaries.factorized import FactorizedAttention
from projects.attention_zoo.summaries.latents import LatentAttention
from projects.attention_zoo.summaries.linear import LinearWindowAttention, PerformerAttention
from projects.attention_zoo.summaries.proxies import ProxyAttention
from projects.attention_zoo.summaries.reduced import LinformerAttention, SpatialReductionAttention
from projects.attention_zoo.summaries.scan import ScanAttention
from projects.attention_zoo.windows.axial import AxialAttention
from projects.attention_zoo.windows.cross_shaped import CrossShapedAttention
from projects.attention_zoo.windows.equal_groups import EqualGroupAttention
from projects.attention_zoo.windows.long_short import LongShortAttention
from projects.attention_zoo.windows.planes import PlaneAttention
from projects.attention_zoo.windows.sets import SetAttention

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
    CrossShapedAttention,
    AxialAttention,
    LongShortAttention,
    DilatedAttention,
    SlidingAttention,
    FocalAttention,
    RoutedAttention,
    ProxyAttention,
    LatentAttention,
    ConcentratedLinearAttention,
    ScanAttention,
    VaryingWindowAttention,
    FactorizedAttention,
    VariedWindowAttention,
)

__all__ = [
    'OTHER_FUNCTION',
    'SAME_FUNCTION',
    'Baseline',
    'JointBaseline',
    *(kind.__name__ for kind in SAME_FUNCTION + OTHER_FUNCTION),
]
