"""Studies of quality: errors against network evaluations, whatever they cost."""
