"""A short run of ``many_processes.py``; the long one is ``python tests/stress/many_processes.py``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FORK = pytest.param(["--fork"], id="fork", marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"))


@pytest.mark.parametrize("how", [pytest.param([], id="spawn"), FORK])
def test_many_processes_on_one_file_lose_nothing_and_end_alike(how):
    """With the two fresh processes at the end, one from a snapshot and one from scratch, all five agree."""
    script = Path(__file__).with_name("many_processes.py")
    done = subprocess.run(
        [sys.executable, str(script), "--processes", "3", "--threads", "4", "--rounds", "15", "--patience", "20", *how],
        capture_output=True, text=True, timeout=60, check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^.+: state \w+", done.stdout, re.MULTILINE)) == 5
    verdict = done.stdout.splitlines()[-1]
    # 3 processes x 4 threads, each with 15 rounds and one ranking that nobody answers
    assert re.fullmatch(r"ok: 192 rankings and 180 feedbacks .*; 5 processes .* 1 state\(s\) and 1 order\(s\)", verdict)
