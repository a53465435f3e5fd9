"""Output of samples: files, pictures, and the record of a run."""
