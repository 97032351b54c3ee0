"""Compare random steps on the CPU kernels with the interpreters, for as long as wanted.

`python scripts/fuzz_kernels.py [--cases 10000] [--seed 0]` prints progress, every seed that fails, and the
counts; it returns 1 if any failed. `fuzz_one(seed)` in tests/codegen/fuzz.py makes a failure again.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from codegen.fuzz import fuzz_one


def main():
    """Run seeds one after the other until enough cases were compared."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    compared, failed, seed, start = 0, [], args.seed, time.monotonic()
    while compared < args.cases:
        try:
            compared += fuzz_one(seed)
        except Exception as error:  # noqa: BLE001 - a kernel that cannot be made is a finding, too
            failed.append(seed)
            print(f"\nseed {seed}: {type(error).__name__}: {str(error).strip()[:300]}")
        seed += 1
        seconds = time.monotonic() - start
        print(
            f"\r{compared} cases of {seed - args.seed} steps, {len(failed)} failed, {seconds:.0f} s", end=""
        )
    print(f"\nfailed seeds: {failed or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
