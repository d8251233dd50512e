"""Fork: which objects of its parent a child process may not use, and how it gets its own.

A forked child has one thread. It gets copies of thread pools and of held locks, but not the threads that
serve or release them, so it would wait forever. It may not use a SQLite connection of its parent either, nor
close it: with one that is inside a transaction at the fork, it would believe that it holds the file's lock.

So a fork waits until no thread is inside `no_fork`. In the child each object that was passed to `renew` makes
new pools, locks and connections; the old ones are leaked on purpose (`abandon`).
"""

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Protocol

_WAIT_SECONDS = 10.0  # long enough for a query; a backup or a build of an engine may take longer


class Forked(Protocol):
    """An object with pools, locks or connections that a forked child may not use."""

    def after_fork(self) -> None:
        """Make new ones; called in the child."""
        ...


class _Gate:
    """Counts the threads that are inside, and holds back forks until there are none."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = self._forking = 0
        self._local = threading.local()  # .depth: how often this thread is inside
        self._is_clean = True
        self.objects: weakref.WeakSet[Forked] = weakref.WeakSet()
        self.torn = False  # this process was forked while another thread was inside

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        depth = getattr(self._local, "depth", 0)
        if not depth:
            with self._changed:
                self._changed.wait_for(lambda: not self._forking)
                self._inside += 1
        self._local.depth = depth + 1
        try:
            yield
        finally:
            self._local.depth = depth
            if not depth:
                with self._changed:
                    self._inside -= 1
                    self._changed.notify_all()

    def before(self) -> None:
        with self._changed:
            self._forking += 1
            own = int(getattr(self._local, "depth", 0) > 0)  # 1 if the thread that forks is inside itself
            others_are_out = self._changed.wait_for(lambda: self._inside == own, _WAIT_SECONDS)
            self._is_clean = others_are_out and not own

    def after_in_parent(self) -> None:
        with self._changed:
            self._forking -= 1
            self._changed.notify_all()

    def after_in_child(self) -> None:
        self._changed, self._local = threading.Condition(), threading.local()
        self._inside = self._forking = 0
        self.torn = self.torn or not self._is_clean
        for item in list(self.objects):
            item.after_fork()


_gate = _Gate()
if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(
        before=_gate.before,
        after_in_parent=_gate.after_in_parent,
        after_in_child=_gate.after_in_child,
    )


def no_fork() -> contextlib.AbstractContextManager[None]:
    """Hold back a fork by another thread while SQLite or a runtime is in use; it waits ten seconds at most.

    A thread that works for a thread inside may not enter itself: during a fork each waits for the other.
    """
    return _gate.inside()


def torn() -> bool:
    """Say whether a fork could not wait; SQLite's record of its locks is then wrong in this process."""
    return _gate.torn


def renew(item: Forked) -> None:
    """Call `after_fork` of an object in each child that is forked while the object lives."""
    _gate.objects.add(item)


def abandon(*objects: object) -> None:
    """Never destroy objects: their destructors would wait for threads that the child does not have."""
    for item in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(item))
