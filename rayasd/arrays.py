"""Types of arrays that several rooms use."""

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]  # input of detectors, (windows, dimensions)
Scores = NDArray[np.float64]  # anomaly scores; higher is more anomalous
Indices = NDArray[np.int64]  # places in a table or array
