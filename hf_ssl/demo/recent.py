"""What was made last is kept, within bounds."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, wait
from threading import Lock
from typing import Any


class Recent:
    """
    The things that were asked for last, by their keys. What several threads ask for at once is made once.

    Args:
        size (`int`): How many are kept.
    """

    def __init__(self, size: int):
        self.size = size
        self._made: OrderedDict[Hashable, Future[Any]] = OrderedDict()
        self._lock = Lock()

    def forget(self, key: Hashable) -> None:
        """
        Args:
            key (`Hashable`): What is not kept any longer.
        """
        with self._lock:
            self._made.pop(key, None)

    def get(self, key: Hashable, make: Callable[[], Any], on_wait: Callable[[], Any] | None = None) -> Any:
        """
        Args:
            key (`Hashable`): What it is found by.
            make (`Callable`): Makes it, if it is not there; what it raises is raised to all who wait for it.
            on_wait (`Callable`, *optional*): Is called now and then while another thread makes it.

        Returns:
            `Any`: what was made.
        """
        with self._lock:
            found = self._made.get(key)
            future = Future() if found is None else found
            self._made[key] = future
            self._made.move_to_end(key)
            if len(self._made) > self.size:
                self._made.popitem(last=False)
        if found is None:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    if self._made.get(key) is future:  # to be tried again
                        del self._made[key]
                future.set_exception(error)
        while on_wait is not None and not wait([future], timeout=0.2).done:
            on_wait()
        return future.result()
