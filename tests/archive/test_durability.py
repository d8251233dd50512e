"""The archive loses nothing to kills, full disks, read-only folders and other processes.

The long forms, with 200 kills and with readers and a writer for a minute, are in
benchmarks/test_durability.py.
"""

import contextlib
import dataclasses
import mmap
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import durability
import pytest
from durability import LAYOUT, State, check_answers, descriptors, held, opened, record, run, traces, traces_of

from skinret_infer import ArchiveError, InputError
from skinret_infer._files import atomic_write
from skinret_infer.archive import database, maintenance
from skinret_infer.archive.archive import Archive
from skinret_infer.descriptor import part_weights

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, limits and permissions of POSIX")
WEIGHTS = part_weights(LAYOUT, 0.6, 0.5)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    durability.small_segments(monkeypatch.setattr)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cases.skinret"


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def _state(count: int, seed: int = 0) -> State:
    chance = random.Random(seed)
    return {f"case-{chance.getrandbits(48):012x}": chance.getrandbits(30) for _ in range(count)}


def _write(archive: Archive, state: State) -> None:
    archive.write([record(*case) for case in state.items()], descriptors([*state.items()]))


def _make(path: Path, count: int = 220, seed: int = 0) -> State:
    """Make an archive of three full segments and a part of one, with its pruning index."""
    state = _state(count, seed)
    with contextlib.closing(opened(path)) as archive:
        _write(archive, state)
        check_answers(archive, state, random.Random(0))
    return state


def _check_whole(path: Path, state: State) -> None:
    """Check that an archive has exactly these cases and no fault."""
    assert held(path) == state
    with contextlib.closing(opened(path)) as archive:
        assert maintenance.check(archive) == []
        check_answers(archive, state, random.Random(1))


def _index_folder(path: Path) -> Path:
    return path.with_name(path.name + ".index")


def _segment_files(path: Path) -> list[Path]:
    return sorted(_index_folder(path).glob("*.segment"))


# -- kills --


def test_an_archive_survives_kills_at_random_moments(path: Path) -> None:
    figures = durability.killed_many_times(path, 12, seed=1)
    assert figures["kills"] == 12 and figures["operations"] > 0


@pytest.mark.parametrize("seed", range(4))
def test_no_bytes_of_removed_or_replaced_cases_stay_in_any_file(seed: int, path: Path) -> None:
    """Not even in the gaps of pages from which SQLite moved rows."""
    chance, state = random.Random(seed), State()
    with contextlib.closing(opened(path)) as archive:
        for _ in range(60):
            op = durability.chosen(chance, state, ("write", "replace", "remove", "write", "compact"))
            durability.perform(archive, op, state, chance)
            state = durability.after(state, op)
            assert traces([path]) == traces_of(state)
            if op[0] == "remove":
                assert traces([*_index_folder(path).glob("*")]) <= traces_of(state)


# -- full disks --

_FULL = """
import resource
from skinret_infer import ArchiveError
path, kind, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
state = held(path)
new = {f"case-{n:012x}": n for n in range(100)}
with contextlib.closing(opened(path)) as archive:
    op = {
        "write": ("write", [*new.items()]), "replace": ("write", [(i, 1) for i in sorted(state)[:70]]),
        "remove": ("remove", sorted(state)[:70]), "backup": ("backup", "copy.skinret"),
    }.get(kind, (kind, None))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # to Python SIGXFSZ is an error of the write
    try:
        perform(archive, op, state, random.Random(0))
        code, state = "", after(state, op)
    except ArchiveError as error:
        code = error.code
    whole = held(path) == state
    check_answers(archive, state, random.Random(0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    whole = whole and maintenance.check(archive) == [] and held(path) == state
    check_answers(archive, state, random.Random(0))
    if code:
        perform(archive, op, state, random.Random(0))
print(json.dumps([code, whole]))
"""


@pytest.mark.parametrize("kind", ["write", "replace", "remove", "compact", "backup", "repair"])
@pytest.mark.parametrize("limit", [1000, None], ids=["nothing", "no growth"])
def test_a_full_disk_is_an_error_that_loses_nothing(kind: str, limit: int | None, path: Path) -> None:
    _make(path)
    (path.parent / "backups").mkdir()
    code, whole = run(_FULL, path, kind, limit or path.stat().st_size)
    assert whole
    if limit or kind == "write":
        assert code == "archive-io"
    assert not list(path.parent.rglob(".*.partial*")) and not list(path.parent.glob("*-journal"))


_FULL_FOR = """
import resource
path, owner, name = Path(sys.argv[1]), *sys.argv[2].split(".")
owner = {"SegmentIndex": pruning.SegmentIndex, "PruningIndex": segments.PruningIndex}[owner]
function = getattr(owner, name)
def tight(*arguments):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        return function(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
setattr(owner, name, tight)
state = {}
with contextlib.closing(opened(path)) as archive:
    for op in (
        ("write", [(f"case-{n:012x}", n) for n in range(150)]),
        ("write", [(f"case-{n:012x}", n + 7) for n in range(60, 160)]),
        ("remove", [f"case-{n:012x}" for n in range(9)]),
    ):
        perform(archive, op, state, random.Random(0))
        state = after(state, op)
        check_answers(archive, state, random.Random(0))
    files = [file.name for file in archive.index.folder.iterdir()] if archive.index.folder.exists() else []
setattr(owner, name, function)
with contextlib.closing(opened(path)) as archive:
    check_answers(archive, state, random.Random(0))
    print(json.dumps([files, maintenance.check(archive)]))
"""


@pytest.mark.parametrize("what", ["SegmentIndex.save", "PruningIndex.take_projection"])
def test_a_full_disk_for_the_pruning_index_fails_no_call(what: str, path: Path) -> None:
    files, faults = run(_FULL_FOR, path, what)
    assert faults == [] and (what == "PruningIndex.take_projection" or files == [])
    assert len(_segment_files(path)) >= 3


@contextlib.contextmanager
def _tmpfs(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_real_disk_that_fills_up_is_an_error_that_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with _tmpfs(disk, "600k"):
        path, state, refused = disk / "cases.skinret", State(), set()
        with contextlib.closing(opened(path)) as archive:
            with pytest.raises(ArchiveError) as caught:
                for n in range(100):
                    new = _state(30, n)
                    _write(archive, new)
                    state |= new
            assert caught.value.code == "archive-io" and len(state) > 100
            check_answers(archive, state, random.Random(0))
            with pytest.raises(ArchiveError) as caught:
                maintenance.backup(archive, disk / "copy.skinret")
            assert caught.value.code == "archive-io" and not (disk / "copy.skinret").exists()
            (disk / "filling").write_bytes(bytes(max(0, shutil.disk_usage(disk).free - 4096)))
            for use in (
                lambda: archive.remove([*state][:20]),
                lambda: maintenance.compact(archive),
                lambda: maintenance.repair(archive),
            ):
                with contextlib.suppress(ArchiveError):
                    use()
                    refused.add(use)
                now = held(path)
                assert now in (state, durability.after(state, ("remove", [*state][:20])))
                check_answers(archive, now, random.Random(0))
        (disk / "filling").unlink()
        shutil.rmtree(_index_folder(path))
        _check_whole(path, now)
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        with contextlib.closing(opened(path)) as archive:
            maintenance.compact(archive)
            maintenance.backup(archive, disk / "copy.skinret")
        _check_whole(path, now)
        _check_whole(disk / "copy.skinret", now)


def test_a_real_full_disk_for_the_pruning_index_fails_no_call(path: Path) -> None:
    with _tmpfs(_index_folder(path), "16k"):
        state = _make(path)
        with contextlib.closing(opened(path)) as archive:
            maintenance.compact(archive)
            removed = [*state][::3]
            assert archive.remove(removed) == len(removed)
            assert not [file for file in _index_folder(path).iterdir() if file.suffix == ".partial"]
        _check_whole(path, durability.after(state, ("remove", removed)))


# -- no folder for temporary files --

_NO_TEMPORARY = """
for folder in /tmp /var/tmp /usr/tmp; do
  if [ -d $folder ]; then mount --bind $folder $folder && mount -o remount,bind,ro $folder || exit 1; fi
done
mount -t tmpfs none "$1" && shift && cd /proc && unset TMPDIR SQLITE_TMPDIR && exec "$@"
"""
_LONG_IDS = """
from skinret_infer import ArchiveError
cases = [(str(n) + "x" * 1000, n) for n in range(8000)]  # more than SQLite sorts without a file
results = []
with contextlib.closing(opened(path := Path(sys.argv[1]))) as archive:
    archive.write([record(*case) for case in cases], descriptors(cases))
    removed = archive.remove([cases[0][0]])
    results.append(removed)
    for maintain in (maintenance.repair, maintenance.check, maintenance.compact):
        try:
            results.append(maintain(archive))
        except ArchiveError as error:
            results.append([error.code, str(error)])
print(json.dumps(results))
"""


def test_without_a_folder_for_temporary_files_cases_can_be_removed(path: Path) -> None:
    """As in a container where only the folder of the archive can be written."""
    within = ["unshare", "-m", "sh", "-c", _NO_TEMPORARY, "sh", str(path.parent)]
    if not shutil.which("unshare") or subprocess.run([*within, "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    removed, repaired, faults, compacted = run(_LONG_IDS, path, within=within)
    assert (removed, repaired, faults) == (1, None, [])
    assert compacted[0] == "archive-temporary" and "SQLITE_TMPDIR" in compacted[1]


# -- folders that may not be written --

_READ_ONLY = """
import os, tempfile
from skinret_infer import ArchiveError
path, elsewhere = Path(sys.argv[1]), Path(sys.argv[2])
state = held(path)
with tempfile.TemporaryDirectory() as folder:  # import all modules while they can be read
    warm = Path(folder) / "warm.skinret"
    with contextlib.closing(opened(warm)) as archive:
        for op in (("write", [(str(n), n) for n in range(90)]), ("compact", None), ("backup", "x.skinret")):
            perform(archive, op, {}, random.Random(0))
        check_answers(archive, {str(n): n for n in range(90)}, random.Random(0))
        maintenance.check(archive)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
results = []
def code(use):
    try:
        use()
        results.append("")
    except ArchiveError as error:
        results.append(error.code + ": " + str(error))
with contextlib.closing(opened(path)) as archive:
    for _ in range(2):
        check_answers(archive, state, random.Random(0))
    assert maintenance.check(archive) == []
    code(lambda: archive.write([record("new", 1)], descriptors([("new", 1)])))
    code(lambda: archive.remove(sorted(state)[:5]))
    code(lambda: maintenance.compact(archive))
    code(lambda: maintenance.repair(archive))
    code(lambda: maintenance.backup(archive, path.with_name("copy.skinret")))
    code(lambda: maintenance.backup(archive, elsewhere / "copy.skinret"))
    check_answers(archive, state, random.Random(0))
    assert held(path) == state
print(json.dumps(results))
"""


def _use_read_only(path: Path) -> list[str]:
    """Use an archive in a read-only folder, as a user who may not write there."""
    with tempfile.TemporaryDirectory() as elsewhere:
        Path(elsewhere).chmod(0o777)
        path.parent.chmod(0o555)
        try:
            results: list[str] = run(_READ_ONLY, path, elsewhere)
        finally:
            path.parent.chmod(0o755)
    return results


@pytest.mark.parametrize("index", ["there", "missing", "damaged", "stale"])
def test_a_folder_that_may_not_be_written_can_be_searched(index: str, public: Path) -> None:
    path = public / "cases.skinret"
    state = _make(path)
    if index == "missing":
        shutil.rmtree(_index_folder(path))
    for file in _segment_files(path):
        if index == "damaged":
            file.write_bytes(file.read_bytes()[:-100])
    if index == "stale":
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE segments SET generation = generation / 2")
    for folder in (path.parent, _index_folder(path)):
        if folder.exists():
            folder.chmod(0o555)
    before = {file: file.read_bytes() for file in public.rglob("*") if file.is_file()}
    *refused, copied = _use_read_only(path)
    assert [message.split(":")[0] for message in refused] == ["archive-io"] * 5, refused
    assert copied == ""
    assert {file: file.read_bytes() for file in public.rglob("*") if file.is_file()} == before
    _check_whole(path, state)


# -- readers and a writer --


def test_readers_see_whole_states_while_another_process_writes(path: Path) -> None:
    figures = durability.readers_and_a_writer(path, readers=2, seconds=3, seed=1)
    assert figures["operations of the writer"] > 0 and figures["searches of the readers"] > 0


# -- the pruning index --

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "a byte": lambda content: content[:1],
    "cut in its head": lambda content: content[:100],
    "cut in half": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-1],
    "zeroed": lambda content: bytes(len(content)),
    "a zeroed page": lambda content: content[:4096] + bytes(4096) + content[8192:],
    "longer": lambda content: content + bytes(64),
    "text": lambda content: b"case_id,image\n" * 100,
    "a flipped bit": lambda content: content[:5000] + bytes([content[5000] ^ 4]) + content[5001:],
    "a flipped length": lambda content: content[:16] + bytes([content[16] ^ 64]) + content[17:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_index_files_change_no_answer(damage: str, path: Path) -> None:
    state = _make(path)
    assert len(_segment_files(path)) == 3
    for file in _segment_files(path):
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with contextlib.closing(opened(path)) as archive:
        assert maintenance.check(archive) == []
    _check_whole(path, state)


def test_flipped_bits_of_index_files_change_no_answer(path: Path) -> None:
    state, chance = _make(path), random.Random(0)
    contents = {file: file.read_bytes() for file in _segment_files(path)}
    for _ in range(30):
        for file, content in contents.items():
            flipped = bytearray(content)
            flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            file.write_bytes(flipped)
        with contextlib.closing(opened(path)) as archive:
            check_answers(archive, state, chance)


def test_index_files_of_other_archives_change_no_answer(path: Path) -> None:
    state, other = _make(path), path.with_name("other.skinret")
    _make(other, seed=1)
    for foreign in (_segment_files(other), _segment_files(path)[1:] + _segment_files(path)[:1]):
        contents = [file.read_bytes() for file in foreign]
        for file, content in zip(_segment_files(path), contents, strict=True):
            file.write_bytes(content)
        with contextlib.closing(opened(path)) as archive:
            assert maintenance.check(archive) == []
        _check_whole(path, state)
    shutil.rmtree(_index_folder(path))
    shutil.copytree(_index_folder(other), _index_folder(path))
    _check_whole(path, state)


@pytest.mark.parametrize("instead", ["folders", "links to nothing", "a file for the folder", "a link for it"])
def test_folders_and_links_in_place_of_index_files_fail_no_call(instead: str, path: Path) -> None:
    state = _make(path)
    if instead in ("folders", "links to nothing"):
        for file in _segment_files(path):
            file.unlink()
            if instead == "folders":
                (file / "x").mkdir(parents=True)
            else:
                file.symlink_to("nothing")
    else:
        shutil.rmtree(_index_folder(path))
        if instead == "a file for the folder":
            _index_folder(path).write_bytes(b"")
        else:
            _index_folder(path).symlink_to("nothing")
    _check_whole(path, state)
    with contextlib.closing(opened(path)) as archive:
        for op in (("write", [*_state(80, 7).items()]), ("remove", [*state][:70]), ("compact", None)):
            durability.perform(archive, op, state, random.Random(0))
            state = durability.after(state, op)
        maintenance.repair(archive)
    _check_whole(path, state)


def test_a_restored_backup_is_searched_by_its_own_cases(path: Path) -> None:
    state, copy = _make(path, 100), path.with_name("copy.skinret")
    with contextlib.closing(opened(path)) as archive:
        maintenance.backup(archive, copy)
        _write(archive, _state(100, 1))
        archive.remove([*state][:5])
    copy.replace(path)
    with contextlib.closing(opened(path)) as archive:
        _write(archive, other := _state(100, 2))
        archive.remove([*state][5:10])
    _check_whole(path, durability.after(state | other, ("remove", [*state][5:10])))


@pytest.mark.parametrize("further", [0, 1, 2, 60])
def test_a_backup_copied_over_the_open_file_is_what_the_next_search_sees(further: int, path: Path) -> None:
    """The backup may have changed elsewhere: up to the revision that is known here, or beyond it."""
    state, copy = _state(100), path.with_name("copy.skinret")
    with contextlib.closing(opened(path)) as service, contextlib.closing(opened(path)) as reader:
        _write(service, state)
        shutil.copyfile(path, copy)
        _write(service, _state(1, 1))
        for archive in (service, reader):
            check_answers(archive, state | _state(1, 1), random.Random(0))
        with contextlib.closing(opened(copy)) as other:
            for n in range(further):
                _write(other, more := _state(1, 2 + n))
                state |= more
            expected = other.state
        shutil.copyfile(copy, path)  # into the file that is open
        for archive in (reader, service):
            check_answers(archive, state, random.Random(0))
            assert archive.state == expected
            assert set(archive.get([*_state(1, 1), *state])) == set(state)
        _write(service, more := _state(40, 99))
        for archive in (service, reader):
            check_answers(archive, state | more, random.Random(0))
    _check_whole(path, state | more)


def test_an_archive_of_another_model_copied_over_the_open_file_is_refused(path: Path) -> None:
    _make(path, 20)
    other = path.with_name("other.skinret")
    with contextlib.closing(Archive(other, "e" * 64, LAYOUT, "other 1")) as archive:
        _write(archive, _state(20, 3))
    with contextlib.closing(opened(path)) as service:
        check = partial(maintenance.check, service)
        check_answers(service, _state(20), random.Random(0))
        shutil.copyfile(other, path)
        for use in (service.search, service.write, service.remove, service.get, check):
            with pytest.raises(ArchiveError) as caught:
                use(
                    *{
                        service.search: (descriptors([("query", 1)]), WEIGHTS, 5),
                        service.write: ([record("new", 1)], descriptors([("new", 1)])),
                        check: (),
                    }.get(use, (["new"],))
                )
            assert caught.value.code == "archive-model"


def test_an_open_file_that_was_emptied_counts_as_none(path: Path) -> None:
    _make(path, 20)
    with contextlib.closing(opened(path)) as service:
        check_answers(service, _state(20), random.Random(0))
        path.write_bytes(b"")
        assert len(service) == 0
        _write(service, more := _state(20, 1))
        check_answers(service, more, random.Random(0))
    _check_whole(path, more)


def test_a_new_archive_with_other_facts_is_filtered_by_those(path: Path) -> None:
    state = _make(path)
    path.unlink()
    with contextlib.closing(opened(path)) as archive:
        changed = [dataclasses.replace(record(*case), diagnosis="another") for case in state.items()]
        archive.write(changed, descriptors([*state.items()]))
        query = descriptors([("query", 1)])
        assert archive.search(query, WEIGHTS, 5, {"diagnosis": "another"})[1] == len(state)


def test_two_writers_of_one_file_do_not_mix_their_bytes(tmp_path: Path) -> None:
    """Otherwise a mapped file could change or shrink under its reader, which would crash."""
    with atomic_write(tmp_path / "file") as mine:
        mine.write_bytes(b"mine")
        with atomic_write(tmp_path / "file") as yours:
            yours.write_bytes(b"yours")
        with (tmp_path / "file").open("rb") as reader:
            mapped = mmap.mmap(reader.fileno(), 0, access=mmap.ACCESS_READ)
        assert mapped[:] == b"yours" and mine.read_bytes() == b"mine"
    assert (tmp_path / "file").read_bytes() == b"mine" and mapped[:] == b"yours"


_INDEXING = """
path, state = Path(sys.argv[1]), None
with contextlib.closing(opened(path)) as archive:
    state = held(path)
    for n in range(25):
        for file in archive.index.folder.glob("*.segment"):
            file.unlink(missing_ok=True)
        archive.index.view = None
        check_answers(archive, state, random.Random(n))
        if n % 8 == 0:
            maintenance.compact(archive)
print(json.dumps(archive.path.name))
"""


def test_processes_and_threads_that_index_at_once_do_no_harm(path: Path) -> None:
    state, raised = _make(path), []

    def one(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            raised.append(error)

    def here() -> None:
        with contextlib.closing(opened(path)) as archive:
            for n in range(40):
                for file in _segment_files(path):
                    file.unlink(missing_ok=True)
                archive.index.view = None
                check_answers(archive, state, random.Random(n))

    jobs = [lambda: run(_INDEXING, path), lambda: run(_INDEXING, path), here, here]
    threads = [threading.Thread(target=one, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []
    _check_whole(path, state)
    with contextlib.closing(opened(path)) as archive:
        archive.remove([])
    assert not list(_index_folder(path).glob(".*.partial"))


# -- bad files --


def test_maintenance_of_a_damaged_archive_raises_archive_error(path: Path) -> None:
    _make(path)
    content, chance = path.read_bytes(), random.Random(0)
    uses: list[Callable[[Archive], object]] = [
        maintenance.check,
        lambda archive: archive.index.file_states(),
        maintenance.repair,
        maintenance.compact,
        lambda archive: maintenance.backup(archive, path.with_name(f"{chance.random()}.skinret")),
        lambda archive: archive.search(descriptors([("query", 1)]), WEIGHTS, 5),
        lambda archive: archive.remove(["none such"]),
    ]
    for n in range(60):
        damaged = bytearray(content)
        if n % 3 == 0:
            del damaged[chance.randrange(len(content)) :]
        elif n % 3 == 1:
            start = chance.randrange(len(content)) // 4096 * 4096
            damaged[start : start + 4096] = chance.choice((bytes(4096), chance.randbytes(4096)))
        else:
            for _ in range(40):
                damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        for use in (uses[n % len(uses)], maintenance.check):
            path.with_name(path.name + "-journal").unlink(missing_ok=True)
            path.write_bytes(damaged)
            for way in (opened, Archive.open):
                with (
                    contextlib.suppress(ArchiveError, InputError),
                    contextlib.closing(way(path)) as archive,
                ):
                    use(archive)


def test_maintenance_does_not_wait_forever_for_a_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = _make(path)
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with (
        contextlib.closing(opened(path)) as archive,
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        uses: list[Callable[[], object]] = [
            lambda: maintenance.check(archive),
            lambda: maintenance.compact(archive),
            lambda: maintenance.repair(archive),
            archive.index.file_states,
            lambda: maintenance.backup(archive, path.with_name("copy.skinret")),
            lambda: archive.remove(["none such"]),
        ]
        for use in uses:
            with pytest.raises(ArchiveError) as caught:
                use()
            assert caught.value.code == "archive-locked"
        other.execute("ROLLBACK")
    assert not path.with_name("copy.skinret").exists()
    _check_whole(path, state)
