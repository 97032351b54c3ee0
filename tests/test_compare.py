import numpy as np
import pytest

from compare import assert_as_accurate, assert_same


def test_the_comparison_can_fail():
    want = np.linspace(-1, 1, 7)
    plain = want.astype(np.float32)
    assert_as_accurate(plain, want, plain)
    for wrong in (plain + 1e-3, plain[:-1], np.full_like(plain, np.nan)):
        with pytest.raises(AssertionError):
            assert_as_accurate(wrong, want, plain)


def test_the_float64_comparison_can_fail():
    assert_same(np.ones(3), np.ones(3))
    for wrong in (np.ones(3) + 1e-9, np.ones(2), np.full(3, np.nan)):
        with pytest.raises(AssertionError):
            assert_same(wrong, np.ones(3))
