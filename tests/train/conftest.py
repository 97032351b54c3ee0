"""Runs `cellfuse train` inside the test's own process and folder."""

import argparse
import json

import pytest
import torch

from cellfuse.train import command

TINY = ("--hidden-size", "8", "--no-bidirectional", "--quiet")


class Train:
    """Call it with the words of the command; it returns the exit status."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, *words, out="run"):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        return command.run(parser.parse_args([*words, "--out", str(self.folder / out)]))

    def tiny(self, task, *words, out="run", cell="gru"):
        """A small model, whatever the task; done in about a second."""
        return self(task, "--cell", cell, *TINY, *words, out=out)

    def checkpoint(self, out="run"):
        return torch.load(self.folder / out / "checkpoint.pt", weights_only=True)

    def results(self, out="run"):
        text = (self.folder / out / "results.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def train(tmp_path):
    return Train(tmp_path)
