"""Where samples go: files, pictures, and the record of a run."""
