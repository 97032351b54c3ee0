"""Time the first training pass of a layer in a fresh process: nothing compiled yet, then from the disk.

`python scripts/time_start.py` prints the median of five processes each, torch's import not counted.
"""

import os
import statistics
import subprocess
import sys
import tempfile

FIRST = """
import time, torch, cellfuse as cf
torch.set_num_threads(1)
layer, x = cf.LSTM(64, 64), torch.randn(20, 4, 64)
start = time.perf_counter()
layer(x)[0].sum().backward()
print(time.perf_counter() - start)
"""


def first_pass(folder):
    """Seconds of the first forward and backward pass of an LSTM with the cache in `folder`."""
    environment = os.environ | {"CELLFUSE_CACHE": folder}
    done = subprocess.run([sys.executable, "-c", FIRST], env=environment, stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


def main(rounds=5):
    """Print both medians."""
    cold, warm = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(first_pass(folder))
            warm.append(first_pass(folder))
    print(f"LSTM, forward and backward: {statistics.median(cold):.3f} s with nothing compiled, "
          f"{statistics.median(warm) * 1e3:.0f} ms from the disk")  # fmt: skip


if __name__ == "__main__":
    main()
