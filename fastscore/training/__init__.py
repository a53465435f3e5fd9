"""Score matching, and the classifier that judges samples."""
