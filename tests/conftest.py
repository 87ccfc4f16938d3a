"""For every test: no example of hypothesis fails for its time, which is the machine's business.

Where there is no NVIDIA GPU, Triton's kernels run in its interpreter. Triton reads that when it is imported,
which PyTorch Geometric does.
"""

import os
from pathlib import Path

from hypothesis import settings

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
