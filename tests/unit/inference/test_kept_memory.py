from __future__ import annotations

import subprocess
import sys

PAGES_OF_THREE_PICTURES = 3 * 512 * 512 * 3 * 4 // 4096
FRAMES = 50
PROGRAM = f"""
import resource
import numpy as np
from services.inference.engine.__main__ import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({FRAMES}):
        one = np.ones((512, 512, 3), np.float32)
        other = 1 - one
        both = one * other
        del one, other, both
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def test_what_a_frame_frees_the_next_one_finds_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < PAGES_OF_THREE_PICTURES  # of one frame, not of fifty
