"""Score models: a network with its schedule and prediction; model folders; exact models; changes of coordinates."""

from fastscore.model.folder import load_model, save_model
from fastscore.model.score import ScoreModel

__all__ = ["ScoreModel", "load_model", "save_model"]
