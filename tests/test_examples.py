"""The examples run: the service answers over HTTP, the notebook's cells run in their order."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from helpers import LAYOUT
from starlette.testclient import TestClient

from skinret_infer import Case, Manifest, Searcher
from skinret_infer.testing import check_store

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_service_answers_queries_and_says_what_is_wrong(
    bundle: Path, archive: Path, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKINRET_BUNDLE", str(bundle))
    monkeypatch.setenv("SKINRET_ARCHIVE", str(archive))
    spec = importlib.util.spec_from_file_location("service", EXAMPLES / "service.py")
    assert spec and spec.loader
    service = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(service)
    image = Path(str(cases[50].image)).read_bytes()
    with TestClient(service.create()) as client:
        answer = client.post("/query", files={"image": image}, data={"text": "irregular streaks", "k": "3"})
        assert answer.status_code == 200 and len(answer.json()["hits"]) == 3
        refused = client.post("/query", files={"image": b"no image"})
        assert refused.status_code == 422 and refused.json()["detail"]["code"] == "image-unreadable"
        assert client.post("/query").status_code == 422


def test_the_store_in_memory_keeps_the_promises_of_a_store_and_answers_a_searcher(
    bundle: Path, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from memory_store import MemoryStore

    check_store(lambda: MemoryStore(LAYOUT), LAYOUT, durable=False, filters=False)
    with Searcher(bundle, MemoryStore(Manifest.read(bundle).layout)) as searcher:
        searcher.add(cases[:5])
        assert len(searcher.query(cases[0].image, "irregular streaks", k=3)) == 3


def test_the_notebook_runs(
    bundle: Path, archive: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle, tmp_path / "demo" / "bundle")
    shutil.copy(archive, tmp_path / "demo" / "cases.skinret")
    shutil.copytree(data / "images", tmp_path / "demo" / "data" / "images")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "query.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5 and not any(cell.get("outputs") for cell in notebook["cells"])
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile(cell, "query.ipynb", "exec"), names)  # noqa: S102 - the notebook's own
