"""A run as shards: each a file of its own, drawn by whichever process comes first, with the same bytes."""
