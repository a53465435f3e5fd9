"""The command line in this process: no import of torch for each test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastscore import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line; return exit code, stdout and stderr."""

    def command(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(word) for word in argv])
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return command
