"""Processes that are there at once: forked from one that has imported what they need.

The server that forks has no threads, unlike the process of the tests.
"""

from __future__ import annotations

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["tests.support.synthetic_job", "tests.support.store_processes", "tests.support.forked_jobs"]
)
