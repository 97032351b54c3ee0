"""The loop over time in a kernel's machine code, as NVIDIA's disassembler prints it."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path


def _disassembler():
    found = shutil.which("nvdisasm")
    packages = Path(sysconfig.get_path("purelib"))
    return found or next((str(path) for path in packages.glob("nvidia/*/bin/nvdisasm")), None)


DISASSEMBLER = _disassembler()
WHY_NOT = "" if DISASSEMBLER else "nvdisasm is not here; pip install nvidia-cuda-nvdisasm brings it"


def instructions(cubin, folder):
    """(instructions, labels): every instruction, and the place of each label among them."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    text = subprocess.run([DISASSEMBLER, "-c", path], capture_output=True, text=True, check=True).stdout
    return parse(text)


def parse(text):
    labels, found = {}, []
    for line in text.splitlines():
        label = re.match(r"\s*(\.L_x_\d+):", line)
        code = re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line)
        if label:
            labels[label[1]] = len(found)
        elif code:
            found.append(code[1].strip())
    return found, labels


def longest_loop(found, labels):
    """The instructions between a branch back and its target, where most lie between."""
    spans = []
    for number, code in enumerate(found):
        target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", code)
        if target and labels.get(target[1], number + 1) <= number:
            spans.append((number - labels[target[1]], labels[target[1]], number))
    assert spans, "no loop in the machine code"
    _, first, last = max(spans)
    return found[first : last + 1]


def count(loop, pattern):
    """How many instructions, without their predicate, begin with `pattern`."""
    return sum(bool(re.match(pattern, re.sub(r"^@!?U?P\w+\s+", "", code))) for code in loop)
