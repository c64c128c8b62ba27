"""scikit-learn's bundled digits: 1,797 handwritten digits of 8x8 pixels.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def load_digits() -> tuple[Tensor, Tensor]:
    """Pixels [1797, 1, 8, 8] in [0, 1] and labels [1797]. Raises FileNotFoundError when scikit-learn is not installed.

    The file is read by its path: importing sklearn.datasets would cost every rank a second.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the digits come with scikit-learn, which is not installed: pip install scikit-learn")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    rows = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.float32))
    return (rows[:, :-1] / 16).reshape(-1, 1, 8, 8), rows[:, -1].long()
