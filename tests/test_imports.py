"""Data flows one way, so imports do too: a module imports only from its own level's left."""

import ast
import subprocess
import sys
from pathlib import Path

import cellfuse

LEVELS = {"errors": 0, "origin": 0, "graph": 1, "cell": 2, "cells": 3}
LEVELS |= {"reference": 3, "masked": 3, "slots": 3}
LEVELS |= {"codegen": 4, "runtime": 5, "nn": 6}
LEVELS |= {"explain": 7, "train": 7, "bench": 7, "cli": 8, "__init__": 9, "__main__": 9}


def imported(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def violations(root):
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        here = parts[0].removesuffix(".py")
        for name in imported(file):
            top, _, rest = name.partition(".")
            if top == "cellfuse" and rest:
                there = rest.split(".")[0]
                level = LEVELS.get(there, -1)  # a name of the package itself, such as __version__
                same = there != here and level == LEVELS[here]
                if level > LEVELS[here] or same:
                    yield f"{file.relative_to(root)} imports {name}"
            if top == "torch" and (here == "codegen" or (here == "graph" and parts[-1] != "trace.py")):
                yield f"{file.relative_to(root)} imports torch"


def test_imports_point_left():
    assert list(violations(Path(cellfuse.__file__).parent)) == []


def test_the_checker_sees_wrong_imports(tmp_path):
    (tmp_path / "graph").mkdir()
    (tmp_path / "train").mkdir()
    (tmp_path / "graph" / "bad.py").write_text("def f():\n    from cellfuse.nn import layer\n")
    (tmp_path / "graph" / "heavy.py").write_text("import torch\n")
    (tmp_path / "train" / "bad.py").write_text("from cellfuse.bench import cases\n")
    found = "\n".join(violations(tmp_path))
    assert "graph/bad.py imports cellfuse.nn" in found
    assert "graph/heavy.py imports torch" in found
    assert "train/bad.py imports cellfuse.bench" in found


# What takes long to load and is for some uses only: torch's compiler alone takes more than a second.
HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "llvmlite",
    "matplotlib",
    "cellfuse.train",
    "cellfuse.bench",
)


def loaded(code):
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return set(done.stdout.split())


def test_what_takes_long_to_load_is_not_loaded_before_it_is_needed():
    assert loaded("import torch, cellfuse").isdisjoint(HEAVY)


def test_a_layer_that_is_not_compiled_does_not_load_the_compiler():
    code = """
import torch, cellfuse as cf
layer, x = cf.LSTM(3, 4), torch.randn(5, 2, 3)
layer(x, reset=torch.rand(5, 2) < 0.5)[0].sum().backward()
layer.eval().requires_grad_(False)
layer.stepper(2)(x[0])
"""
    assert loaded(code).isdisjoint(HEAVY[:3])
