"""A few random steps in every run; scripts/fuzz_kernels.py runs as many as wanted."""

import pytest

from cellfuse.codegen.cpu import spell
from codegen.fuzz import fuzz_one


@pytest.mark.parametrize("seed", range(24))
def test_random_steps_on_kernels_are_the_interpreters(seed):
    fuzz_one(seed)


def fuzz_all():
    for seed in range(40):
        fuzz_one(seed, cases=1)


@pytest.mark.parametrize(("right", "wrong"), [("sub", "add"), ("lt", "gt"), ("tanh", "sigmoid")])
def test_a_wrong_spelling_is_found(right, wrong, monkeypatch):
    monkeypatch.setitem(spell.SPELL, right, spell.SPELL[wrong])
    with pytest.raises(AssertionError):
        fuzz_all()
