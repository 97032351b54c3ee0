"""What a recurrent layer computes: facts about its tensors, in words, checked on real tensors."""

from cellfuse.explain.facts import Claim, Count, Explanation, Memory, ModelExplanation, TensorFact
from cellfuse.explain.gather import explain

__all__ = ["Claim", "Count", "Explanation", "Memory", "ModelExplanation", "TensorFact", "explain"]
