"""A Searcher in the processes of servers: forked, spawned, in pools, under gunicorn and Celery.

Each test has a time limit: an error with forks can hang without a message.
"""

import asyncio
import contextlib
import faulthandler
import http.client
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from skinret_infer import ArchiveError, Case, Searcher, SkinretError, _forks
from skinret_infer.engines.cache import cached

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
LIMIT = 60  # seconds; a test takes two
WORDS = "irregular streaks"
BIN = Path(sys.executable).parent


def use(searcher: Searcher, case: Case, own: str) -> list[Any]:
    """Query, add, explain and remove, as a server does; return answers that do not depend on the process."""
    groups = {"group": ["bkl", "mel", "nevus"]}  # not those that another process adds meanwhile
    alone, with_words = (searcher.query(case.image, text, k=3, where=groups) for text in (None, WORDS))
    report = searcher.add([Case(own, case.image, diagnosis=own)])
    again = searcher.query(case.image, k=1, where={"diagnosis": own})
    evidence = with_words[0].evidence(with_case=False)
    removed = searcher.remove([own])
    return [
        [hit.case_id for hit in alone],
        [hit.case_id for hit in with_words],
        report.added == [own],
        again[0].case_id == own,
        abs(sum(evidence.parts.values()) - evidence.score) < 1e-6,
        removed,
    ]


@pytest.fixture
def writable(archive: Path, tmp_path: Path) -> Path:
    """A copy of the archive, which may be written to."""
    return Path(shutil.copy(archive, tmp_path / "cases.skinret"))


@pytest.fixture(params=["onnxruntime-cpu", "openvino"])
def runtime(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return request.param


@pytest.fixture
def expected(bundle: Path, writable: Path, cases: list[Case], runtime: str) -> list[Any]:
    """Return the result of `use` in this process."""
    with Searcher(bundle, writable, runtime=runtime) as searcher:
        result = use(searcher, cases[0], "here")
    assert result[2:] == [True, True, True, 1]
    return result


@contextlib.contextmanager
def child(work: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Fork, do the work in the child, and yield a function that waits for its result."""
    out, into = os.pipe()
    if not (pid := os.fork()):
        with contextlib.suppress(BaseException):
            faulthandler.dump_traceback_later(LIMIT, exit=True)
            os.write(into, json.dumps(work()).encode())
        os._exit(0)
    os.close(into)

    def result() -> Any:
        with os.fdopen(out, "rb") as file:
            content = file.read()
        assert os.waitpid(pid, 0)[1] == 0, "the child hung"
        assert content, "the child raised"
        return json.loads(content)

    yield result


@pytest.mark.parametrize("state", ["warm", "cold"])
def test_a_forked_child_uses_the_searcher_of_its_parent(
    state: str, bundle: Path, writable: Path, cases: list[Case], runtime: str, expected: list[Any]
) -> None:
    with Searcher(bundle, writable, runtime=runtime, audit=writable.with_name("audit.jsonl")) as searcher:
        before = None
        if state == "warm":
            searcher.warmup()
            assert use(searcher, cases[0], "parent") == expected
            before = searcher.query(cases[0].image, WORDS)

        def work() -> list[Any]:
            found = use(searcher, cases[0], f"child-{os.getpid()}")
            if before:  # results of the parent have their evidence in the child
                found.append(before[0].evidence(with_case=False).case_id == before[0].case_id)
            ran = searcher.runtime
            searcher.close()
            return [found, ran]

        with child(work) as first, child(work) as second:
            assert use(searcher, cases[0], "parent") == expected
            for answer in (first(), second()):
                assert answer == [expected + ([True] if before else []), runtime]
        assert use(searcher, cases[0], "parent") == expected


def test_a_child_that_only_closes_ends(bundle: Path, writable: Path, cases: list[Case], runtime: str) -> None:
    with Searcher(bundle, writable, runtime=runtime) as searcher:
        searcher.warmup()
        with child(searcher.close) as closed:
            assert closed() is None


def test_a_child_that_exits_normally_succeeds(
    bundle: Path, writable: Path, cases: list[Case], runtime: str
) -> None:
    """At its exit the interpreter frees the Searcher, and must not wait for threads of the parent."""
    code = f"""
import os, sys
from skinret_infer import Searcher
searcher = Searcher({str(bundle)!r}, {str(writable)!r}, runtime={runtime!r})
first = searcher.query({str(cases[0].image)!r}, {WORDS!r}, k=1)[0].case_id
if not (pid := os.fork()):
    sys.exit(searcher.query({str(cases[0].image)!r}, {WORDS!r}, k=1)[0].case_id != first)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    python = [sys.executable, "-W", "ignore::DeprecationWarning"]  # of any fork with threads, from 3.12 on
    done = subprocess.run([*python, "-c", code], timeout=LIMIT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_forks_while_other_threads_query_and_add_do_no_harm(
    bundle: Path, writable: Path, cases: list[Case], runtime: str, expected: list[Any]
) -> None:
    with Searcher(bundle, writable, runtime=runtime) as searcher:
        stop, failed = threading.Event(), []

        def use_until_stop(name: str) -> None:
            while not stop.is_set():
                try:
                    assert use(searcher, cases[0], name)[1] == expected[1]
                except BaseException as error:
                    failed.append(error)
                    return

        threads = [threading.Thread(target=use_until_stop, args=[f"thread-{n}"]) for n in range(2)]
        for thread in threads:
            thread.start()
        try:
            for n in range(6):
                time.sleep(0.02 * n)
                with child(lambda n=n: use(searcher, cases[0], f"child-{n}")[1]) as found:
                    assert found() == expected[1]
        finally:
            stop.set()
            for thread in threads:
                thread.join(LIMIT)
        assert not failed


def test_a_fork_in_the_middle_of_a_transaction_is_an_error_in_the_child(
    bundle: Path, writable: Path, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite in the child would believe that it holds the lock of the file."""
    monkeypatch.setattr(_forks, "_WAIT_SECONDS", 0.1)
    with Searcher(bundle, writable, runtime="onnxruntime-cpu") as searcher:
        inside, over = threading.Event(), threading.Event()

        def long_read() -> None:
            with searcher._store.snapshot():  # type: ignore[attr-defined]
                inside.set()
                over.wait(LIMIT)

        thread = threading.Thread(target=long_read)
        thread.start()
        assert inside.wait(LIMIT)

        def work() -> str:
            try:
                searcher.query(cases[0].image)
            except ArchiveError as error:
                return error.code
            return "answered"

        with child(work) as found:
            assert found() == "archive-forked"
        over.set()
        thread.join(LIMIT)
        with child(work) as found:
            assert found() == "answered"


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"])
def test_a_card_that_the_parent_opened_is_refused_only_in_the_child(
    name: str, bundle: Path, writable: Path, cases: list[Case]
) -> None:
    """CUDA does not cross a fork. Here the CPU's engine stands for a card's: only its name is different."""
    with Searcher(bundle, writable, runtime="onnxruntime-cpu") as searcher:
        searcher._encoder.engine.name = name

        def work() -> str:
            try:
                searcher.query(cases[0].image)
            except SkinretError as error:
                return error.code
            return "answered"

        with child(work) as found:
            assert found() == "runtime-forked"
        assert searcher.query(cases[0].image).runtime == name


def test_a_fork_while_an_engine_is_built_blocks_no_process(tmp_path: Path) -> None:
    key = dict.fromkeys(("graph", "onnx", "runtime", "precision", "capability", "device", "platform"), "x")
    started, over = threading.Event(), threading.Event()

    def slow() -> bytes:
        started.set()
        over.wait(LIMIT)
        return b"built"

    def built(name: str, build: Callable[[], bytes] = lambda: b"") -> str:
        return bytes(cached(tmp_path / name, key, build, notify=lambda _: None)).decode()

    thread = threading.Thread(target=built, args=["a.engine", slow])
    thread.start()
    assert started.wait(LIMIT)
    ours, theirs = os.pipe()

    def work() -> list[str]:
        other = built("b.engine", lambda: b"other")
        os.read(ours, 1)  # it still runs when the parent has built
        return [other, built("a.engine")]

    with child(work) as found:
        over.set()
        thread.join(LIMIT)
        with child(lambda: built("a.engine", lambda: b"again")) as third:  # the lock is free again
            assert third() == "built"
        os.write(theirs, b"x")
        assert found() == ["other", "built"]


# -- processes that receive a Searcher --

_SEARCHERS: list[Searcher] = []


def _begin(searcher: Searcher) -> None:
    _SEARCHERS.append(searcher)


def _ask(case: Case, name: str) -> list[Any]:
    return use(_SEARCHERS[0], case, name)


def _answer(searcher: Searcher, case: Case, pipe: Any) -> None:
    pipe.send(use(searcher, case, "child"))
    searcher.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_searcher_can_be_passed_to_a_process(
    method: str, bundle: Path, writable: Path, cases: list[Case], runtime: str, expected: list[Any]
) -> None:
    context = multiprocessing.get_context(method)
    with Searcher(bundle, writable, runtime=runtime) as searcher:
        searcher.warmup()
        ours, theirs = context.Pipe()
        process = context.Process(target=_answer, args=(searcher, cases[0], theirs))
        process.start()
        assert ours.poll(LIMIT), "the child hung"
        assert ours.recv() == expected
        process.join(LIMIT)
        assert process.exitcode == 0


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_workers_of_a_process_pool_answer(
    method: str, bundle: Path, writable: Path, cases: list[Case], expected: list[Any], runtime: str
) -> None:
    context = multiprocessing.get_context(method)
    with Searcher(bundle, writable, runtime=runtime) as searcher:
        searcher.query(cases[0].image, WORDS)
        with ProcessPoolExecutor(2, context, initializer=_begin, initargs=(searcher,)) as pool:
            futures = [pool.submit(_ask, cases[0], f"task-{n}") for n in range(4)]
            assert [future.result(LIMIT)[1] for future in futures] == [expected[1]] * 4


def test_a_closed_searcher_cannot_be_passed_on(bundle: Path, writable: Path) -> None:
    searcher = Searcher(bundle, writable, runtime="onnxruntime-cpu")
    searcher.close()
    with pytest.raises(ArchiveError, match="closed"):
        searcher.__reduce__()


def test_threads_of_an_event_loop_answer(
    bundle: Path, writable: Path, cases: list[Case], expected: list[Any]
) -> None:
    async def ask(searcher: Searcher) -> list[list[Any]]:
        calls = [asyncio.to_thread(use, searcher, cases[0], f"thread-{n}") for n in range(6)]
        return await asyncio.wait_for(asyncio.gather(*calls), LIMIT)

    with Searcher(bundle, writable) as searcher:
        results = asyncio.run(ask(searcher))
    assert [result[1] for result in results] == [expected[1]] * 6


# -- servers --

_SETUP = """
import json, os, sys
sys.path[:0] = [{tests!r}, {here!r}]
from skinret_infer import Case, Searcher
from test_servers import use
searcher = Searcher({bundle!r}, {archive!r}, runtime={runtime!r}, audit={audit!r})
case = Case("query", {image!r})
if {warm}:
    searcher.warmup()
    use(searcher, case, "parent")
"""
_GUNICORN = """
def app(environ, start_response):
    body = json.dumps([os.getpid(), use(searcher, case, "worker-" + str(os.getpid()))]).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]
"""
_CELERY = """
from celery import Celery
app = Celery("tasks", broker="filesystem://", backend="file://" + {folder!r})
folders = ("data_folder_in", "data_folder_out", "control_folder")
app.conf.broker_transport_options = dict.fromkeys(folders, {folder!r})
app.conf.worker_hijack_root_logger = False

@app.task
def ask():
    return [os.getpid(), use(searcher, case, "worker-" + str(os.getpid()))]
"""


def _write_app(
    code: str, folder: Path, bundle: Path, writable: Path, cases: list[Case], runtime: str, warm: bool
) -> None:
    names = {
        "tests": Path(__file__).parents[1],
        "here": Path(__file__).parent,
        "bundle": bundle,
        "archive": writable,
        "image": cases[0].image,
    }
    names |= {"audit": folder / "audit.jsonl", "folder": folder / "queue"}
    texts = {name: str(path) for name, path in names.items()}
    (folder / "server.py").write_text((_SETUP + code).format(**texts, runtime=runtime, warm=warm))


@contextlib.contextmanager
def _running(command: list[str], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server, and end it as a supervisor does; it must end by itself."""
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0, log.read_text()
        assert not any(sign in log.read_text() for sign in ("Traceback", "was sent", "exited with")), (
            log.read_text()
        )
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


class _Local(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=LIMIT)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT)
        self.sock.connect(str(self.path))


def _get(path: Path) -> Any:
    """Ask a server, which may be starting."""
    deadline = time.monotonic() + LIMIT
    while True:
        with contextlib.closing(_Local(path)) as connection:
            try:
                connection.request("GET", "/")
                response = connection.getresponse()
                assert response.status == 200
                return json.loads(response.read())
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline, "the server does not start"
                time.sleep(0.05)


@pytest.mark.parametrize("warm", [True, False])
def test_gunicorn_with_preload_answers_from_every_worker(
    warm: bool,
    bundle: Path,
    writable: Path,
    cases: list[Case],
    expected: list[Any],
    runtime: str,
    tmp_path: Path,
) -> None:
    pytest.importorskip("gunicorn")
    _write_app(_GUNICORN, tmp_path, bundle, writable, cases, runtime, warm)
    address = tmp_path / "s"
    command = [
        str(BIN / "gunicorn"),
        "--preload",
        "--workers",
        "2",
        "--threads",
        "2",
        "--bind",
        f"unix:{address}",
    ]
    with _running([*command, "server:app"], tmp_path):
        answered: set[int] = set()
        deadline = time.monotonic() + LIMIT
        while len(answered) < 2:
            assert time.monotonic() < deadline, "a worker does not answer"
            pid, answer = _get(address)
            assert answer == expected
            answered.add(pid)


@pytest.mark.parametrize(
    "runtime", ["openvino" if find_spec("openvino") else "onnxruntime-cpu"], indirect=True
)
def test_celery_prefork_answers_from_every_worker(
    bundle: Path, writable: Path, cases: list[Case], expected: list[Any], runtime: str, tmp_path: Path
) -> None:
    celery = pytest.importorskip("celery")
    (tmp_path / "queue").mkdir()
    _write_app(_CELERY, tmp_path, bundle, writable, cases, runtime, True)
    client = celery.Celery("client", broker="filesystem://", backend=f"file://{tmp_path / 'queue'}")
    client.conf.broker_transport_options = dict.fromkeys(
        ("data_folder_in", "data_folder_out", "control_folder"), str(tmp_path / "queue")
    )
    command = [str(BIN / "celery"), "-A", "server", "worker", "--pool", "prefork", "--concurrency", "2"]
    with _running([*command, "--loglevel", "WARNING", "--without-gossip", "--without-mingle"], tmp_path):
        tasks = [client.send_task("server.ask") for _ in range(4)]
        results = [task.get(timeout=LIMIT) for task in tasks]
    assert [answer for _, answer in results] == [expected] * 4
