"""Compile CUDA texts in a process of their own: NVRTC may crash on malformed assembler instructions."""

import json
import subprocess
import sys
from dataclasses import asdict

from cellfuse.codegen.cuda.compile import Stats, compile, why_not

WHY_NOT = why_not()


def compile_all(texts, archs):
    """{(arch, which text): {entry: Stats}}; raises RuntimeError with NVRTC's message."""
    given = json.dumps([list(texts), list(archs)])
    command = [sys.executable, "-W", "error", __file__]
    made = subprocess.run(command, input=given, capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(f"exit status {made.returncode}: {made.stderr[-4000:]}")
    return {
        (arch, k): {entry: Stats(**stats) for entry, stats in entries.items()}
        for arch, k, entries in json.loads(made.stdout)
    }


def main():
    texts, archs = json.load(sys.stdin)
    made = []
    for arch in archs:
        for k, text in enumerate(texts):
            stats = compile(text, arch).stats
            made.append((arch, k, {entry: asdict(each) for entry, each in stats.items()}))
    json.dump(made, sys.stdout)


if __name__ == "__main__":
    main()
