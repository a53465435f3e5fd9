"""How the threads of a command wait, and that the user has the last word."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("given", "seen"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_a_commands_threads_sleep_soon_unless_the_user_chose(given, seen):
    code = (
        "import os, sys; from fastscore.cli import main\n"
        "try: main(['--version'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    out = subprocess.run([sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == str(seen)


def test_where_torch_is_loaded_the_environment_stays(monkeypatch):
    from fastscore.cli.threads import wait_briefly

    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    wait_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ
