"""A short run of ``kill_nine.py``; the long one is ``python tests/stress/kill_nine.py --kills 100``."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest


def _load():
    path = Path(__file__).with_name("kill_nine.py")
    spec = importlib.util.spec_from_file_location("kill_nine", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_nine"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_process_loses_no_acknowledged_feedback(tmp_path):
    """Five kills at random moments: all that was acknowledged is there and the file is intact."""
    outcome = _load().kill_often(tmp_path / "telemetry.db", kills=5, seed=7, threads=4)
    assert (outcome.missing, outcome.damaged) == ((), ())
    assert outcome.acknowledged >= 5
