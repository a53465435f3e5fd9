"""Many processes on one run: on this machine, under Ray, and as jobs of schedulers."""
