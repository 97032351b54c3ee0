"""A kernel's machine code: the loop over time as NVIDIA's disassembler prints it; some codes without one."""

import re
import shutil
import struct
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path

# Local memory, fences and what goes with them, by the low bits of an instruction; sm_80 to sm_120.
CODES = {0x387: "STL", 0x983: "LDL", 0x992: "MEMBAR", 0x98F: "CCTL", 0x9AB: "ERRBAR", 0x3C6: "FENCE"}


def slow_codes(cubin):
    """{entry: how many instructions of each name in CODES}, for every entry. Needs no disassembler."""
    (start,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<3H", cubin, 0x3A)
    # Of each section of the ELF file: its name's place, then where its content begins and how long it is.
    sections = [struct.unpack_from("<I20xQQ", cubin, start + k * size) for k in range(count)]
    found = {}
    for place, first, length in sections:
        begin = sections[names][1] + place
        name = cubin[begin : cubin.index(b"\0", begin)].decode()
        if name.startswith(".text."):
            words = struct.iter_unpack("<QQ", cubin[first : first + length])
            codes = Counter(CODES.get(low & 0xFFF) for low, _ in words)
            del codes[None]
            found[name.removeprefix(".text.")] = codes
    return found


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
