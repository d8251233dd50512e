"""Fork: what a child process may not use of its parent, and how it gets its own.

A forked child has one thread. Thread pools of a runtime, executors and held locks are copied without the
threads that serve or release them, so the child would wait without end. A SQLite connection may not cross a
fork either, nor be closed there, and a connection that is inside a transaction at that moment would make the
child believe that it holds the lock of the file.

So a fork waits until no thread is inside `no_fork`, and in the child each object that registered with `renew`
makes new pools, locks and connections; the old ones are leaked on purpose (`abandon`).
"""

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Protocol

_WAIT_SECONDS = 10.0  # for queries that run; a backup or a build of an engine may take longer


class Forked(Protocol):
    """An object that holds what does not cross a fork."""

    def after_fork(self) -> None:
        """Make new ones, in the child."""
        ...


class _Gate:
    """Counts the threads that are inside, and holds back forks while there are some."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = self._forking = 0
        self._mine = threading.local()  # .depth: how often this thread is inside
        self._clean = True
        self.objects: weakref.WeakSet[Forked] = weakref.WeakSet()
        self.torn = False  # this process was forked while another thread was inside

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        depth = getattr(self._mine, "depth", 0)
        if not depth:
            with self._changed:
                self._changed.wait_for(lambda: not self._forking)
                self._inside += 1
        self._mine.depth = depth + 1
        try:
            yield
        finally:
            self._mine.depth = depth
            if not depth:
                with self._changed:
                    self._inside -= 1
                    self._changed.notify_all()

    def before(self) -> None:
        with self._changed:
            self._forking += 1
            mine = int(getattr(self._mine, "depth", 0) > 0)
            others_left = self._changed.wait_for(lambda: self._inside == mine, _WAIT_SECONDS)
            self._clean = others_left and not mine

    def after_in_parent(self) -> None:
        with self._changed:
            self._forking -= 1
            self._changed.notify_all()

    def after_in_child(self) -> None:
        self._changed, self._mine = threading.Condition(), threading.local()
        self._inside = self._forking = 0
        self.torn = self.torn or not self._clean
        for held in list(self.objects):
            held.after_fork()


_gate = _Gate()
if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(
        before=_gate.before,
        after_in_parent=_gate.after_in_parent,
        after_in_child=_gate.after_in_child,
    )


def no_fork() -> contextlib.AbstractContextManager[None]:
    """Hold back a fork by another thread while SQLite or a runtime is in use; the fork waits ten seconds.

    Threads that work for a thread that is inside may not enter themselves: each would wait for the other.
    """
    return _gate.inside()


def torn() -> bool:
    """Say whether a fork could not wait, so that SQLite's account of its locks is wrong in this process."""
    return _gate.torn


def renew(held: Forked) -> None:
    """Call `after_fork` of an object in each child that is forked while it lives."""
    _gate.objects.add(held)


def abandon(*objects: object) -> None:
    """Never destroy objects: their destructors would wait for threads that are not there."""
    for thing in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
