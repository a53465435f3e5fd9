"""Posteriors of sbi on this engine, and its solvers in sbi's ``sample``."""

from fastscore.adapters.sbi.draws import sample
from fastscore.adapters.sbi.model import IID, NoisyFlow, from_sbi
from fastscore.adapters.sbi.predictor import predictor

__all__ = ["IID", "NoisyFlow", "from_sbi", "predictor", "sample"]
