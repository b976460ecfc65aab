"""How workers are started."""

import os
import subprocess
import sys


FORK = """
import os, sys
from hf_ssl.data import prepare_for_workers

prepare_for_workers()
prepare_for_workers()
asked, current_frames = [], sys._current_frames

def recorded():
    asked.append(os.getpid())
    return current_frames()

sys._current_frames = recorded
child = os.fork()
if child == 0:
    os._exit(0 if asked == [os.getppid()] else 1)
sys.exit(os.waitpid(child, 0)[1])
"""


def test_list_of_threads_is_not_being_changed_in_a_fork():
    """The parent takes the list's lock right before it forks, once; a child of CPython 3.11 would wait for it forever."""
    assert subprocess.run([sys.executable, "-c", FORK], env=os.environ, timeout=120).returncode == 0
