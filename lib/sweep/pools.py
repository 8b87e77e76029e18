"""Where points run: worker processes on this machine, or a Dask cluster.

Both are seen through `concurrent.futures`: `submit` gives a future, `width` says how many points
make sense at a time, `close` ends it.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import resource_tracker
from typing import Any, Protocol

from joblib.externals.loky import get_reusable_executor

from lib.sweep.breaks import ignore_interruptions, undisturbed

MOST_WORKERS = 1024
ADDRESS = re.compile(
    r"(?:(?:tcp|tls|ws|wss|ucx|ucxx)://)?(?:\[[\da-fA-F:]+\]|[^\s/:\[\]]+):\d{1,5}"
)


class Pool(Protocol):
    """What `lib.sweep.run` needs of one."""

    @property
    def width(self) -> int:
        """Points to keep in flight."""

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future:
        """Run `call` somewhere."""

    def close(self, kill: bool = False) -> None:
        """End the workers, after their points or, with `kill`, at once."""


class LocalPool:
    """Worker processes on this machine; one that dies is replaced."""

    def __init__(self, workers: int):
        if not 1 <= workers <= MOST_WORKERS:
            raise ValueError(
                f"workers must be at least 1 and at most {MOST_WORKERS}, got {workers}"
            )
        self.width = workers
        # Started by the first worker, inside `undisturbed`, it would let Ctrl-C through again:
        # Python 3.11 leaves the signal unblocked behind it, whatever it was before.
        resource_tracker.ensure_running()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future:
        """Run `call` in a worker; a broken pool is a new one by the next call."""
        with undisturbed():
            return self._executor().submit(call, *arguments)

    def close(self, kill: bool = False) -> None:
        """End the workers and, with `kill`, the kernels they run."""
        self._executor().shutdown(wait=True, kill_workers=kill)

    def _executor(self) -> Any:
        return get_reusable_executor(
            max_workers=self.width, initializer=_end_with, initargs=(os.getpid(),)
        )


def _end_with(parent: int) -> None:
    """In a worker: end when the parent does, which kill -9 leaves no time to say."""
    ignore_interruptions()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class ClusterPool:
    """A Dask distributed cluster, at the address of its scheduler (extra `cluster`)."""

    TIMEOUT = 30.0  # seconds for the scheduler to answer, and for a worker to be there

    def __init__(self, address: str):
        try:
            from distributed import Client
        except ImportError:
            raise ValueError("a scheduler needs the package distributed (Dask)") from None
        if not ADDRESS.fullmatch(address):
            raise ValueError(f"scheduler must be an address such as tcp://HOST:8786, got {address}")
        try:
            self._client = Client(address, timeout=self.TIMEOUT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"no scheduler answers at {address}: {error}") from None
        self._address, self._seen = address, time.monotonic()
        try:
            self._client.wait_for_workers(1, timeout=self.TIMEOUT)
        except TimeoutError:
            self._client.close()
            raise ValueError(self._alone()) from None
        self._executor = self._client.get_executor(pure=False)

    @property
    def width(self) -> int:
        """Threads of all workers of the moment; workers may come and go.

        Raises:
            OSError: there has been no worker for `TIMEOUT` seconds.
        """
        threads = sum(self._client.nthreads().values())
        if threads:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > self.TIMEOUT:
            raise OSError(self._alone())
        return max(1, threads)

    def _alone(self) -> str:
        return f"the scheduler at {self._address} has had no workers for {self.TIMEOUT:g} s"

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future:
        """Run `call` on the cluster; Dask runs it again where a worker is lost."""
        return self._executor.submit(call, *arguments)

    def close(self, kill: bool = False) -> None:
        """Leave the cluster, which goes on; points still running there are cancelled."""
        self._executor.shutdown(wait=not kill)
        self._client.close()
