"""Materials of surfaces as a 905 nm pulse sees them: reflectance, gloss, transparency.

The intensities are tuned to the histogram of a released LIDAR_TOP keyframe (asphalt 2-15, facades
10-30, foliage 5-30, paint 2-60, plates and signs 100-255); see docs/simulation.md.
"""

from __future__ import annotations

import numpy as np

# name: (intensity at normal incidence 0-255, its relative spread, exponent of cos(incidence),
#        share that passes through, mean depth of penetration in m)
_MATERIALS = {
    'asphalt': (11.0, 0.19, 0.25, 0.0, 0.0),
    'paving': (26.0, 0.17, 0.25, 0.0, 0.0),
    'grass': (24.0, 0.25, 0.10, 0.02, 0.03),
    'marking': (70.0, 0.22, 0.20, 0.0, 0.0),
    'facade': (30.0, 0.25, 0.50, 0.0, 0.0),
    'concrete': (26.0, 0.17, 0.50, 0.0, 0.0),
    'foliage': (18.0, 0.39, 0.10, 0.12, 0.6),
    'bark': (14.0, 0.22, 0.50, 0.0, 0.0),
    'paint': (32.0, 0.28, 1.00, 0.02, 0.0),
    'glass': (9.0, 0.33, 1.50, 0.70, 0.0),
    'rubber': (5.0, 0.22, 0.50, 0.05, 0.0),
    'metal': (30.0, 0.33, 0.80, 0.03, 0.0),
    'plastic': (30.0, 0.22, 0.60, 0.02, 0.0),
    'cloth': (14.0, 0.33, 0.40, 0.18, 0.0),
    'skin': (35.0, 0.17, 0.40, 0.0, 0.0),
    'retroreflector': (170.0, 0.22, 0.20, 0.0, 0.0),
    'mesh': (16.0, 0.28, 0.50, 0.65, 0.0),
}
NAMES = tuple(_MATERIALS)
TABLE = np.array([_MATERIALS[name] for name in NAMES])  # [M, 5]
(
    ASPHALT,
    PAVING,
    GRASS,
    MARKING,
    FACADE,
    CONCRETE,
    FOLIAGE,
    BARK,
    PAINT,
    GLASS,
    RUBBER,
    METAL,
    PLASTIC,
    CLOTH,
    SKIN,
    RETROREFLECTOR,
    MESH,
) = range(len(NAMES))
