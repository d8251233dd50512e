"""A bundle is loaded whole and proven, or refused with the file that is to blame."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skinret_infer import BundleError, Case, Searcher, SkinretError
from skinret_infer.bundle import CONCEPT_HEAD, FILES, GRAPHS, SCHEMA, Bundle, Manifest
from skinret_infer.descriptor import Layout
from skinret_infer.imaging.recipe import ImageRecipe
from skinret_infer.text import TextRecipe


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that may be damaged."""
    return shutil.copytree(bundle, tmp_path / "bundle")


def _rewrite(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    edit(manifest)
    path.write_text(json.dumps(manifest), "utf-8")
    return path


def _set(folder: Path, place: str, value: Any) -> Path:
    """Write a value at a dotted place of the manifest, such as "levels.0.height"."""

    def edit(manifest: Any) -> None:
        *way, last = place.split(".")
        for step in way:
            manifest = manifest[int(step) if isinstance(manifest, list) else step]
        manifest[int(last) if isinstance(manifest, list) else last] = value

    return _rewrite(folder, edit)


def _replace(folder: Path, name: str, content: bytes) -> Path:
    """Replace a file and its hash, as one who means it would."""
    (folder / name).write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    _rewrite(folder, lambda manifest: manifest["files"].update({name: sha256}))
    return folder / name


def _refusal(folder: Any, code: str, names: object = "") -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder)
    assert caught.value.code == code, caught.value
    assert str(names) in str(caught.value)
    return str(caught.value)


# -- files --


def test_a_bundle_as_it_was_exported_loads(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    assert loaded == Bundle.load(str(bundle))
    assert loaded.path == bundle and set(loaded.manifest.files) == {*FILES, CONCEPT_HEAD}
    assert all(loaded.graph(name).is_file() for name in GRAPHS)
    assert {path.name for path in bundle.iterdir()} == {*FILES, CONCEPT_HEAD, "manifest.json"}


@pytest.mark.parametrize("name", [*FILES, CONCEPT_HEAD])
@pytest.mark.parametrize("place", [0, 0.5, -1], ids=["first", "middle", "last"])
def test_a_changed_byte_is_found_and_its_file_named(name: str, place: float, copy: Path) -> None:
    content = bytearray((copy / name).read_bytes())
    content[int(place * len(content)) if place == 0.5 else int(place)] ^= 1
    (copy / name).write_bytes(content)
    _refusal(copy, "bundle-hash", copy / name)


@pytest.mark.parametrize("name", [*FILES, CONCEPT_HEAD])
def test_a_file_cut_short_emptied_or_grown_is_found_and_named(name: str, copy: Path) -> None:
    content = (copy / name).read_bytes()
    for other in (content[:-1], b"", content + b"\n"):
        (copy / name).write_bytes(other)
        _refusal(copy, "bundle-hash", copy / name)


@pytest.mark.parametrize("name", [*FILES, CONCEPT_HEAD])
def test_a_missing_file_is_named(name: str, copy: Path) -> None:
    (copy / name).unlink()
    _refusal(copy, "bundle-incomplete", copy / name)
    (copy / name).mkdir()
    _refusal(copy, "bundle-incomplete", copy / name)


def test_a_file_without_a_hash_in_the_manifest_is_refused(copy: Path) -> None:
    _rewrite(copy, lambda manifest: manifest["files"].pop("composer.onnx"))
    _refusal(copy, "bundle-hash", copy / "composer.onnx")


def test_a_folder_without_a_manifest_is_no_bundle(copy: Path, tmp_path: Path) -> None:
    (copy / "manifest.json").unlink()
    assert "manifest.json" in _refusal(copy, "bundle-missing", copy)


@pytest.mark.parametrize("what", ["nothing", "a file", "too long", "nul"])
def test_what_is_no_folder_is_no_bundle(what: str, tmp_path: Path) -> None:
    (tmp_path / "a file").write_bytes(b"")
    name = {"too long": "x" * 300, "nul": "a\0b"}.get(what, what)
    message = _refusal(tmp_path / name, "bundle-missing", tmp_path / name)
    assert "skinret-export" in message and "BUNDLE ARCHIVE" in message
    assert ("found a file." in message) == (what == "a file")


# -- the manifest --


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        b"{",
        b"null",
        b"[]",
        b"7",
        b'"schema"',
        b"{}",
        b'{"schema": %d}' % SCHEMA,
        b"\xff\xfe{}",
        b"[" * 100_000,
        b"1" * 5000,
        b'{"schema": %d, "levels": [], "image": [], "text": [], "layout": []}' % SCHEMA,
    ],
    ids=lambda content: repr(content[:20]),
)
def test_a_manifest_that_is_none_is_refused_by_name(content: bytes, copy: Path) -> None:
    (copy / "manifest.json").write_bytes(content)
    _refusal(copy, "bundle-manifest", copy / "manifest.json")


@pytest.mark.parametrize("schema", [SCHEMA + 1, 99, 10**30])
def test_a_newer_schema_asks_for_a_newer_package(schema: int, copy: Path) -> None:
    _set(copy, "schema", schema)
    _rewrite(copy, lambda manifest: manifest.update(what_comes_next={}))
    message = _refusal(copy, "bundle-newer", copy / "manifest.json")
    assert str(schema) in message and "install --upgrade skinret-infer" in message


def test_a_command_in_a_cure_can_be_copied_as_it_stands(copy: Path) -> None:
    _set(copy, "schema", SCHEMA + 1)
    assert "pip install" in _refusal(copy, "bundle-newer")


@pytest.mark.parametrize("schema", range(1, SCHEMA))
def test_an_older_schema_asks_for_a_new_training(schema: int, copy: Path) -> None:
    _set(copy, "schema", schema)
    message = _refusal(copy, "bundle-older", copy / "manifest.json")
    assert f"schema {schema}" in message and "train the model again" in message


@pytest.mark.parametrize("schema", [0, -1, None, "1", 1.0, 1.5, True, [1]], ids=repr)
def test_a_schema_that_never_was_is_refused(schema: Any, copy: Path) -> None:
    _set(copy, "schema", schema)
    assert "schema" in _refusal(copy, "bundle-manifest", copy / "manifest.json")


@pytest.mark.parametrize("place", ["", "image", "text", "layout", "levels.1"])
def test_an_unknown_field_is_named(place: str, copy: Path) -> None:
    _set(copy, f"{place}.surprise".lstrip("."), 1)
    assert "surprise" in _refusal(copy, "bundle-manifest", copy / "manifest.json")


_OPTIONAL = {"files", "metrics", "parity", "precision_checks", "intended_use", "calibration", "group_weight"}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Manifest) if f.name not in _OPTIONAL])
def test_a_missing_field_is_named(field: str, copy: Path) -> None:
    _rewrite(copy, lambda manifest: manifest.pop(field))
    assert field in _refusal(copy, "bundle-manifest", copy / "manifest.json")


@pytest.mark.parametrize("place", ["layout.local", "layout.global_", "levels.2.width"])
def test_a_missing_inner_field_is_named(place: str, copy: Path) -> None:
    *way, last = place.split(".")

    def edit(manifest: Any) -> None:
        for step in way:
            manifest = manifest[int(step) if isinstance(manifest, list) else step]
        del manifest[last]

    _rewrite(copy, edit)
    assert last in _refusal(copy, "bundle-manifest", copy / "manifest.json")


def test_a_bundle_that_does_not_say_which_checkpoint_it_came_from_is_refused(copy: Path) -> None:
    """The fingerprint, which binds an archive to its model, would be that of any such bundle."""
    _rewrite(copy, lambda manifest: manifest["origin"].pop("checkpoint_sha256"))
    _refusal(copy, "bundle-manifest", "checkpoint_sha256")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model", 7),
        ("version", 1),
        ("regions", "8"),
        ("regions", 8.0),
        ("opset", None),
        ("opset", True),
        ("beta", "0.6"),
        ("beta", None),
        ("beta", [0.6]),
        ("aggregation", None),
        ("origin", []),
        ("files", []),
        ("files", None),
        ("metrics", "good"),
        ("image", None),
        ("image", "224"),
        ("image.size", "64"),
        ("image.size", 64.0),
        ("image.size", 0),
        ("image.fit", 1),
        ("text", []),
        ("text.length", None),
        ("text.length", 0.5),
        ("text.length", 0),
        ("checklist", ["{} streaks"]),
        ("checklist.criteria.streaks.phrase", 5),
        ("levels", None),
        ("levels", 3),
        ("levels", []),
        ("levels.0", 7),
        ("levels.0", ["height", "width", "channels"]),
        ("levels.0.height", "8"),
        ("layout", None),
        ("layout", []),
        ("layout.local", None),
        ("layout.local", 7),
        ("layout.local", "abc"),
        ("layout.local", ["a", "b", "c"]),
        ("layout.local", [32, 64]),
        ("layout.local", [32, 64, 128, 256]),
        ("layout.local", [0.5, 0.5, 0.5]),
        ("layout.local", [True, True, True]),
        ("layout.global_", [32, 64, None]),
        ("layout.global_", [32, 64, 0]),
        ("layout.concepts", 3),
        ("layout.concepts", [3, 0]),
        ("layout.concepts", [3, 2.5]),
        ("layout.concepts", [3]),  # as many as there are concepts
        ("layout.concepts", [3, 4]),
        ("gamma", "0.5"),
        ("gamma", None),
        ("concepts", []),
        ("concepts", {"group": "mel"}),
        ("concepts", {"group": ["mel", 7]}),
        ("concepts", {}),
    ],
    ids=repr,
)
def test_a_value_of_another_type_is_refused_and_its_field_named(place: str, value: Any, copy: Path) -> None:
    _set(copy, place, value)
    message = _refusal(copy, "bundle-manifest", copy / "manifest.json")
    if value is not None and place in ("model", "regions", "opset", "beta", "image.size", "layout.local"):
        assert place in message


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("beta", -0.1),
        ("beta", 2.0),
        ("beta", 2),
        ("beta", float("nan")),
        ("beta", float("inf")),
        ("gamma", -0.1),
        ("gamma", 1.5),
        ("regions", -8),
        ("opset", -1),
        ("image.size", -64),
        ("text.length", -1),
        ("text.max_characters", -1),
        ("levels.1.channels", -1),
        ("layout.local", [32, -64, 128]),
    ],
    ids=repr,
)
def test_a_number_out_of_range_is_refused_and_its_field_named(place: str, value: Any, copy: Path) -> None:
    _set(copy, place, value)
    assert place.split(".")[-1] in _refusal(copy, "bundle-manifest", copy / "manifest.json")


@pytest.mark.parametrize("name", ["beta", "gamma"])
@pytest.mark.parametrize("weight", [0, 1, 0.0, 1.0, 0.37])
def test_any_weight_from_0_to_1_is_taken(name: str, weight: float, copy: Path) -> None:
    _set(copy, name, weight)
    assert getattr(Bundle.load(copy).manifest, name) == weight


def test_a_weight_of_concepts_without_concepts_is_refused(copy: Path) -> None:
    _set(copy, "concepts", {})
    _set(copy, "layout.concepts", [])
    assert "gamma: 0.5 without concepts" in _refusal(copy, "bundle-manifest", copy / "manifest.json")


@pytest.mark.parametrize("place", ["image.fit", "image.resample", "image.orientation", "image.decode"])
def test_an_image_recipe_that_this_package_does_not_know_is_refused(place: str, copy: Path) -> None:
    _set(copy, place, "lanczos9")
    with pytest.raises(SkinretError, match="lanczos9"):
        Bundle.load(copy)


@pytest.mark.parametrize(
    ("place", "value", "most"),
    [
        ("image.size", 2049, "2,048"),
        ("image.size", 10**400, "2,048"),
        ("text.length", 4097, "4,096"),
        ("text.max_characters", 100_001, "100,000"),
        ("levels.2.height", 1025, "1,024"),
        ("levels.0.width", 2**40, "1,024"),
        ("levels.1.channels", 65_537, "65,536"),
        ("regions", 1025, "1,024"),
        ("layout.local", [16, 16, 65_537], ""),
        ("layout.global_", [2**60, 16, 16], ""),
        ("layout.concepts", [3] * 257, ""),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_size_that_no_model_has_is_refused_with_what_is_allowed(
    place: str, value: Any, most: str, copy: Path
) -> None:
    _set(copy, place, value)
    message = _refusal(copy, "bundle-manifest", copy / "manifest.json")
    assert place.split(".")[-1 if place[-1].isalpha() else 0].split("_")[0] in message and most in message


@pytest.mark.parametrize("phrase", ["{0.__class__}", "{:>99999999}", "{} {}", "{x}", "{", "}} {}", "{!r}"])
def test_a_phrase_that_does_more_than_take_a_word_is_refused(phrase: str, copy: Path) -> None:
    _set(copy, "checklist.criteria.streaks.phrase", phrase)
    assert "criteria.streaks.phrase" in _refusal(copy, "bundle-manifest", copy / "manifest.json")


@pytest.mark.parametrize(
    ("place", "value"),
    [("metrics", {"mAP": float("nan")}), ("parity", [float("-inf")]), ("model", "\ud800")],
    ids=["nan", "infinity", "a lone surrogate"],
)
def test_what_is_no_json_in_utf8_is_refused(place: str, value: Any, copy: Path) -> None:
    _set(copy, place, value)
    _refusal(copy, "bundle-manifest", copy / "manifest.json")


def test_a_name_that_stands_twice_is_refused(copy: Path) -> None:
    path = copy / "manifest.json"
    for part, more in (("{", '{"files": {}, '), ('"files": {', '"files": {"composer.onnx": "0", ')):
        text = path.read_text("utf-8")
        path.write_text(text.replace(part, more, 1), "utf-8")
        assert "twice" in _refusal(copy, "bundle-manifest", path)
        path.write_text(text, "utf-8")


def test_files_of_absurd_size_are_refused_before_they_are_read(copy: Path) -> None:
    for name, size in (
        ("manifest.json", 4_000_001),
        ("tokenizer.json", 64_000_001),
        ("composer.onnx", 2**31),
    ):
        whole = (copy / name).read_bytes()
        with (copy / name).open("r+b") as file:
            file.truncate(size)  # of holes
        _refusal(copy, "bundle-too-large", copy / name)
        (copy / name).write_bytes(whole)
    Bundle.load(copy)


@pytest.mark.parametrize(
    "name", ["../composer.onnx", "/etc/passwd", "deep/composer.onnx", "composer.onnx.data"]
)
def test_a_file_that_no_bundle_has_is_refused(name: str, copy: Path) -> None:
    _rewrite(copy, lambda manifest: manifest["files"].update({name: "0" * 64}))
    assert repr(name) in _refusal(copy, "bundle-manifest", copy / "manifest.json")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
_PLACES = (
    *("schema", "model", "image", "image.size", "image.fit", "text", "text.length", "checklist"),
    *("levels", "levels.0", "levels.0.height", "layout", "layout.local", "layout.global_", "regions"),
    *(
        "beta",
        "gamma",
        "concepts",
        "concepts.group",
        "layout.concepts",
        "origin",
        "files",
        "metrics",
        "parity",
        "intended_use",
    ),
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(place=st.sampled_from(_PLACES), value=_JSON)
def test_whatever_stands_in_a_manifest_it_is_read_or_refused(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory, place: str, value: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "manifest"
    folder.mkdir(exist_ok=True)
    shutil.copy(bundle / "manifest.json", folder)
    _set(folder, place, value)
    try:
        manifest = Manifest.read(folder)
    except SkinretError:
        return
    assert 0 <= manifest.beta <= 1 and 0 <= manifest.gamma <= 1
    assert manifest.layout.length > 0 and len(manifest.layout.starts) == 6 + len(manifest.concepts)


def test_a_manifest_written_and_read_again_is_the_same(bundle: Path, tmp_path: Path) -> None:
    manifest = Bundle.load(bundle).manifest
    (tmp_path / "manifest.json").write_text(manifest.to_json(), "utf-8")
    assert Manifest.read(tmp_path) == manifest


# -- what the hash cannot tell --


def _use(folder: Path, archive: Path, cases: list[Case]) -> None:
    with Searcher(folder, archive) as searcher:
        searcher.add(cases[:2])
        searcher.query(cases[2].image, "atypical pigment network")


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("content", [b"nonsense", b"", None], ids=["nonsense", "empty", "cut"])
def test_a_graph_that_is_no_onnx_is_named(
    graph: str, content: bytes | None, copy: Path, tmp_path: Path
) -> None:
    name = f"{graph}.onnx"
    whole = (copy / name).read_bytes()
    _replace(copy, name, whole[: len(whole) // 2] if content is None else content)
    _refusal(copy, "bundle-graph", copy / name)
    with pytest.raises(BundleError) as caught:
        Searcher(copy, tmp_path / "cases.skinret")
    assert caught.value.code == "bundle-graph" and str(copy / name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("composer.onnx", "similarity_head.onnx"),
        ("visual_encoder.onnx", "text_encoder.onnx"),
        ("similarity_head.onnx", "visual_encoder.onnx"),
    ],
)
def test_a_graph_in_the_place_of_another_is_refused(
    name: str, other: str, copy: Path, tmp_path: Path, cases: list[Case]
) -> None:
    _replace(copy, name, (copy / other).read_bytes())
    with pytest.raises(BundleError, match=name.removesuffix(".onnx")):
        _use(copy, tmp_path / "cases.skinret", cases)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("image.size", 128),
        ("layout.local", [32, 64, 64]),
    ],
    ids=repr,
)
def test_a_manifest_that_does_not_fit_its_graphs_is_refused(
    place: str, value: Any, copy: Path, tmp_path: Path, cases: list[Case]
) -> None:
    _set(copy, place, value)
    with pytest.raises(BundleError):
        _use(copy, tmp_path / "cases.skinret", cases)


def test_a_shorter_text_recipe_fits_the_same_graphs(copy: Path, tmp_path: Path, cases: list[Case]) -> None:
    _set(copy, "text.length", 16)
    with Searcher(copy, tmp_path / "cases.skinret") as searcher:
        searcher.add(cases[:2])
        words = searcher.manifest.checklist.text_of(cases[2].attributes)
        warnings = searcher.query(cases[2].image, words).warnings
    assert any("16 tokens" in warning for warning in warnings)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        b"{}",
        b"[]",
        b"\xff\xfe\x00",
        b'{"model": {"type": "WordPiece"}}',
        b'{"model": {"type": "WordPiece", "vocab": {}, "unk_token": "[UNK]",'
        b' "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}}',
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_tokenizer_that_is_nonsense_is_refused(
    content: bytes, copy: Path, tmp_path: Path, cases: list[Case]
) -> None:
    _replace(copy, "tokenizer.json", content)
    Bundle.load(copy)
    with pytest.raises(BundleError) as caught:
        _use(copy, tmp_path / "cases.skinret", cases)
    assert caught.value.code == "bundle-tokenizer" and "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize("key", ["padding", "truncation"])
def test_lengths_that_a_tokenizer_asks_for_are_not_heeded(
    key: str, copy: Path, tmp_path: Path, cases: list[Case]
) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    tokenizer[key] = {
        "padding": {
            "strategy": {"Fixed": 2**60}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]",
        },
        "truncation": {"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
    }[key]  # fmt: skip
    _replace(copy, "tokenizer.json", json.dumps(tokenizer).encode())
    _use(copy, tmp_path / "cases.skinret", cases)


def test_a_bundle_that_is_refused_leaves_no_archive(copy: Path, tmp_path: Path) -> None:
    _replace(copy, "composer.onnx", b"nonsense")
    with pytest.raises(BundleError):
        Searcher(copy, tmp_path / "new" / "cases.skinret")
    assert not (tmp_path / "new").exists()


# -- the fingerprint --


@pytest.fixture
def manifest(bundle: Path) -> Manifest:
    return Bundle.load(bundle).manifest


def test_the_fingerprint_is_the_same_where_the_descriptors_are(manifest: Manifest) -> None:
    for change in (
        {"metrics": {"mAP": 0.9}},
        {"parity": {"passed": True, "worst": 1e-6}},
        {"precision": "fp16"},
        {"files": dict.fromkeys(FILES, "0" * 64)},
        {"model": "other", "version": "2"},
        {"beta": 0.1, "gamma": 0.2},
        {"opset": 20},
        {"intended_use": ""},
        {"text": TextRecipe(length=32)},
        {"origin": {**manifest.origin, "packages": {}, "data": "elsewhere"}},
    ):
        assert dataclasses.replace(manifest, **change).fingerprint == manifest.fingerprint, change


def test_the_fingerprint_changes_with_what_a_descriptor_depends_on(manifest: Manifest) -> None:
    local, global_ = manifest.layout.local, manifest.layout.global_
    changes: list[dict[str, Any]] = [
        {"image": ImageRecipe(size=65)},
        {"image": ImageRecipe(size=64, fit="squash")},
        {"image": ImageRecipe(size=64, resample="bilinear")},
        {"layout": Layout(local=(*local[:2], local[2] + 1), global_=global_)},
        {"layout": Layout(local=local, global_=(*global_[:2], global_[2] + 1))},
        {"layout": Layout(local=local[::-1], global_=global_)},
        {"origin": {**manifest.origin, "checkpoint_sha256": "0" * 64}},
    ]
    prints = {dataclasses.replace(manifest, **change).fingerprint for change in changes}
    assert len(prints | {manifest.fingerprint}) == len(changes) + 1
    assert all(len(print_) == 64 for print_ in prints)


def test_the_fingerprint_does_not_depend_on_the_order_of_the_manifest(copy: Path, manifest: Manifest) -> None:
    path = copy / "manifest.json"
    turned = dict(reversed(json.loads(path.read_text("utf-8")).items()))
    path.write_text(json.dumps(turned), "utf-8")
    assert Bundle.load(copy).manifest.fingerprint == manifest.fingerprint
