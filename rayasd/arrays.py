"""Types of arrays that several rooms use."""

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]
"""Input of detectors, (windows, dimensions)."""
Scores = NDArray[np.float64]
"""Anomaly scores; higher is more anomalous."""
Indices = NDArray[np.int64]
"""Places in a table or array."""
