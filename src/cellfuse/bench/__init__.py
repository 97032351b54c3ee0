"""Measurements: named cases, checked, then timed against torch.nn and a hand-written loop."""
