"""Hypothesis: new examples at every run by hand, the same ones in CI; no deadlines, because machines are shared."""

import os

from hypothesis import settings

settings.register_profile("by-hand", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "by-hand")
