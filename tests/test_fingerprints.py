"""No bit of any sample changes unless the changelog says so: see tests/oracles/fingerprints.py."""

from __future__ import annotations

import json

import pytest
from fingerprints import BACKENDS, FILE, digest, portable

EXPECTED = json.loads(FILE.read_text())
SETTINGS = list(portable())


def test_every_setting_is_recorded():
    assert [name for name, _ in SETTINGS] == list(EXPECTED)


@pytest.mark.thirds
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(3))
def test_bits_are_the_recorded_ones(part):
    """Three settings of eight on one backend, one in four on the slow reference; the slow test has all on each."""
    for k, (name, draw) in enumerate(SETTINGS):
        if k % 8 == part:
            assert digest(draw(BACKENDS[0 if k // 8 % 4 == 0 else -1])) == EXPECTED[name], name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", [pytest.param("reference", marks=pytest.mark.nightly), *BACKENDS[1:]])
def test_bits_are_the_recorded_ones_on_every_backend(backend):
    assert {name: digest(draw(backend)) for name, draw in SETTINGS} == EXPECTED
