"""Make the two data files of `cellfuse train` from the packages they are published in.

It downloads nothing: `src/cellfuse/train/data/README.md` says how to get its three inputs and under
which licences the two outputs stand. The same inputs give the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import lzma
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

SERIES = "sktime/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts"


def main() -> int:
    """Write both files into the folder named last; return 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help="sktime-1.2.0-py3-none-any.whl")
    parser.add_argument("program", type=Path, help="bible-kjv_4.38_amd64.deb (the reader)")
    parser.add_argument("text", type=Path, help="bible-kjv-text_4.38_all.deb (the text)")
    parser.add_argument("out", type=Path, help="src/cellfuse/train/data")
    args = parser.parse_args()
    write_vowels(args.wheel, args.out / "japanese_vowels.npz")
    write_text(args.program, args.text, args.out / "kjv_new_testament.txt.xz")
    return 0


def write_vowels(wheel: Path, out: Path) -> None:
    """All 640 series behind one another as whole millionths, features first, with their lengths."""
    series: list[np.ndarray] = []
    speakers: list[int] = []
    counts: list[int] = []
    with zipfile.ZipFile(wheel) as archive:
        for part in ("TRAIN", "TEST"):
            before = len(series)
            for line in archive.read(SERIES.format(part=part)).decode().splitlines():
                if not line.strip() or line[0] in "#@":
                    continue
                *features, speaker = line.split(":")
                rows = [[float(value) for value in feature.split(",")] for feature in features]
                series.append(np.array(rows))
                speakers.append(int(speaker))
            counts.append(len(series) - before)
    values = np.concatenate(series, axis=1)
    millionths = np.round(values * 1e6).astype(np.int32)
    if np.abs(millionths / 1e6 - values).max() > 1e-9:  # the source has six decimals
        raise ValueError("a value has more than six decimals: millionths would lose some of it")
    np.savez_compressed(
        out,
        millionths=millionths,
        lengths=np.array([rows.shape[1] for rows in series], dtype=np.uint8),
        speakers=np.array(speakers, dtype=np.uint8),
        counts=np.array(counts, dtype=np.uint16),
    )


def write_text(program: Path, text: Path, out: Path) -> None:
    """Matthew to Revelation, a verse per line without its number, chapters an empty line apart."""
    with tempfile.TemporaryDirectory() as folder:
        for package in (program, text):
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
        verses = subprocess.run(
            [f"{folder}/usr/bin/bible", "-f", "-p", f"{folder}/usr/lib", "Matt1:1-Rev22:21"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    lines: list[str] = []
    chapter = ""
    for verse in verses:
        reference, *words = verse.split()
        before, chapter = chapter, reference.partition(":")[0]
        if before and chapter != before:
            lines.append("")
        lines.append(" ".join(words))
    raw = ("\n".join(lines) + "\n").encode("ascii")
    out.write_bytes(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    sys.exit(main())
