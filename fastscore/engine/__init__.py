"""The engine: one loop over plan rows around the network."""
