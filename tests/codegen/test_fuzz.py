"""A few random steps in every run; scripts/fuzz_kernels.py runs as many as wanted."""

import pytest

from cellfuse.codegen.cpu import spell
from codegen.fuzz import fuzz_one


@pytest.mark.parametrize("seed", range(24))
def test_random_steps_on_kernels_are_the_interpreters(seed):
    fuzz_one(seed)


@pytest.mark.parametrize(("right", "wrong"), [("sub", "add"), ("lt", "le"), ("tanh", "sigmoid")])
def test_a_wrong_spelling_is_found(right, wrong, monkeypatch):
    if right == "lt":  # equal values are rare: turn the comparison round
        monkeypatch.setitem(spell.SPELL, "lt", spell.SPELL["gt"])
    else:
        monkeypatch.setitem(spell.SPELL, right, spell.SPELL[wrong])
    with pytest.raises(AssertionError):
        for seed in range(40):
            fuzz_one(seed, cases=1)
