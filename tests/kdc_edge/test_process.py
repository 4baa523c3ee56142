"""Work in processes of their own."""

import os
import subprocess
import sys
import time

import pytest

from kdc_edge import process
from kdc_edge.errors import ResourceError


def test_one_killed_by_the_system_is_out_of_memory() -> None:
    with pytest.raises(ResourceError, match="unet: its process was killed, most likely for want of memory"):
        process.in_own_process("unet", os._exit, 137)


def test_the_others_end_at_once_where_one_fails() -> None:
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError), process.processes("two", 2) as pool:
        pool.submit(time.sleep, 60)
        pool.submit(divmod, 1, 0).result()
    assert time.monotonic() - started < 30


def test_none_outlives_who_began_it() -> None:
    """Parent and child hold the pipe; it ends when both have."""
    code = """
import os, time
from kdc_edge.process import processes
with processes("one", 1) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 60).result()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None and int(parent.stdout.readline()) != parent.pid
    parent.kill()
    parent.communicate(timeout=20)


def test_one_that_raises_tidies_up_before_it_ends() -> None:
    """A semaphore of it, as tqdm makes one, would be complained of as leaked, below the message of the error."""
    code = """
from kdc_edge.process import in_own_process
in_own_process("one", exec, "import tqdm; tqdm.tqdm([]); 1 / 0")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "ZeroDivisionError" in ended.stderr and "leaked" not in ended.stderr
