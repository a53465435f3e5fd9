"""``python -m fastscore`` is the command line."""

from fastscore.cli import main

main()
