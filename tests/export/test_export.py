"""Export: the contract of the four graphs, the proof, and that nothing half-made is left."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers import CHECKLIST, CONCEPTS, take_graphs, tiny_checkpoint, tiny_config

from skinret_export import parity
from skinret_export.cli import main
from skinret_export.export import export_bundle, make_probe
from skinret_export.graphs import OUTPUTS, check_graph, graph_specs, write_graph
from skinret_infer import Case, InputError, ParityError, Searcher
from skinret_infer._files import file_sha256
from skinret_infer.bundle import FILES, GRAPHS, Bundle, Calibration
from skinret_infer.descriptor import score_weights, state
from skinret_infer.engines import openvino
from skinret_infer.engines.registry import open_engine
from skinret_infer.evaluation import precision
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import ImageRecipe, preprocess
from skinret_infer.text import TextEncoderInput
from skinret_infer.words.checklist import Checklist
from skinret_infer.words.reading import reader_of
from skinret_training.checkpoint import Checkpoint
from skinret_training.model import ModelConfig


def test_the_bundle_says_what_it_is_and_proves_its_bytes(bundle: Path, checkpoint: Path) -> None:
    manifest = Bundle.load(bundle).manifest
    assert sorted(p.name for p in bundle.iterdir()) == sorted((*FILES, "concept_head.npy", "manifest.json"))
    assert set(manifest.files) == {*FILES, "concept_head.npy"}
    assert manifest.origin["checkpoint_sha256"] == file_sha256(checkpoint)
    assert manifest.parity["passed"] and manifest.parity["images"] >= 64
    assert manifest.parity["lists_equal_up_to_ties"] == manifest.parity["images"]
    assert [(level.height, level.channels) for level in manifest.levels] == [(8, 32), (4, 64), (2, 128)]
    assert manifest.layout.length == 2 * (32 + 64 + 128) + 3 + 3
    assert (manifest.gamma, manifest.concepts) == (0.5, CONCEPTS)
    assert "similarity, not a probability" in manifest.intended_use


@pytest.mark.parametrize("graph", GRAPHS)
def test_each_graph_keeps_the_contract(bundle: Path, checkpoint: Path, graph: str) -> None:
    loaded = Checkpoint.load(checkpoint)
    spec = graph_specs(loaded.model(), loaded.text.length)[graph]
    check_graph(bundle / f"{graph}.onnx", spec)
    model = onnx.load(bundle / f"{graph}.onnx")
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input
    }
    assert all(shape[0] == next(iter(shapes.values()))[0] != 2 for shape in shapes.values())
    if graph == "visual_encoder":
        assert shapes["pixels"][1:] == [64, 64, 3]
        assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert sum(n.op_type == "LayerNormalization" for n in model.graph.node) > 3
    content = (bundle / f"{graph}.onnx").read_bytes()
    assert b".py" not in content, "a trace of the source is left in the graph"


def test_any_batch_size_gives_the_same_rows(bundle: Path, cases: list[Case]) -> None:
    engine = open_engine(Bundle.load(bundle))
    pixels = np.stack([preprocess(decode(c.image), ImageRecipe(size=64)) for c in cases[:9]])
    whole = engine.run("visual_encoder", {"pixels": pixels}, ["high"])["high"]
    for start, stop in ((0, 1), (1, 4), (4, 9)):
        part = engine.run("visual_encoder", {"pixels": pixels[start:stop]}, ["high"])["high"]
        np.testing.assert_allclose(part, whole[start:stop], atol=1e-5)


def test_the_searcher_scores_as_pytorch_does(
    bundle: Path, checkpoint: Path, archive: Path, cases: list[Case]
) -> None:
    loaded = Checkpoint.load(checkpoint)
    model = loaded.model()
    text = "typical pigment network, absent streaks, flat lesion, back location, female patient"
    reading = reader_of(CHECKLIST).read(text)
    assert reading.canonical == text and CHECKLIST.settled(reading.allowed) >= 4  # words of full weight
    ids, mask, _ = TextEncoderInput(loaded.tokenizer, loaded.text)([text])
    pixels = torch.from_numpy(
        np.stack([preprocess(decode(c.image), loaded.image) for c in [*cases[:40], cases[50]]])
    )
    with torch.no_grad():
        d_t = model(pixels[:40])
        d_q = model(pixels[40:], torch.from_numpy(ids), torch.from_numpy(mask))
    layout = model.similarity_head.layout
    d_q = torch.from_numpy(state(d_q[0].numpy(), reading.allowed, model.config.concepts, layout)[None])
    expected = ((d_q.numpy() * score_weights(layout, 0.6, 0.5, 0.6)) @ d_t.numpy().T)[0]
    by_id = {case.case_id: n for n, case in enumerate(cases)}
    with Searcher(bundle, archive) as searcher:
        hits = searcher.query(cases[50].image, text, k=40)
    np.testing.assert_allclose([h.score for h in hits], [expected[by_id[h.case_id]] for h in hits], atol=1e-5)


@pytest.mark.parametrize("aggregation", ["mean", "max", "concat"])
def test_every_aggregation_exports(aggregation: str, tokenizer: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tokenizer, aggregation=aggregation, regions=3)
    specs = graph_specs(checkpoint.model(), 64)
    path = tmp_path / "similarity_head.onnx"
    write_graph(specs["similarity_head"], path)
    check_graph(path, specs["similarity_head"])


@pytest.mark.slow
def test_a_model_of_the_default_recipe_exports_with_orientations_and_finds_as_pytorch_does(
    tokenizer: str, cases: list[Case], tmp_path: Path
) -> None:
    options = {"neck": "fused", "width": 16, "fusion": "additive", "tta": 2, "typicality": True}
    calibration = {"pictures": 60, "first_hits": {"image_only": 0.25}}
    checkpoint = dataclasses.replace(tiny_checkpoint(tokenizer, **options), calibration=calibration)
    checkpoint.save(tmp_path / "ckpt.pt")
    bundle = export_bundle(
        tmp_path / "ckpt.pt", tmp_path / "bundle", check_precision=False
    )  # it proves itself
    assert bundle.manifest.layout.length == 6 * 16 + 3 + 3
    assert bundle.manifest.calibration == Calibration(**calibration)
    assert bundle.manifest.parity["value_errors"]["visual_encoder"]["distance"] <= 1e-4
    pixels = np.stack([preprocess(decode(c.image), checkpoint.image) for c in cases[:3]])
    engine = open_engine(bundle)
    with torch.no_grad():
        distances = checkpoint.model().visual_encoder.with_distance(torch.from_numpy(pixels))[-1]
    np.testing.assert_allclose(engine.embed(pixels, None).distances, distances.numpy(), rtol=1e-4)
    for batch in (pixels, np.ascontiguousarray(pixels[:, :, ::-1])):  # a picture and its mirror are one case
        maps = engine.run("visual_encoder", {"pixels": batch}, ["low", "mid", "high"])
        with torch.no_grad():
            expected = checkpoint.model().visual_encoder(torch.from_numpy(pixels))
        if batch is pixels:
            for x, y in zip(maps.values(), expected, strict=True):
                np.testing.assert_allclose(x, y.numpy(), atol=1e-4)
        else:
            for x, y in zip(maps.values(), expected, strict=True):
                np.testing.assert_allclose(x[:, :, ::-1], y.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("graph", "by", "code"),
    [("composer", 1.01, "parity-value"), ("similarity_head", float("nan"), "parity-nan")],
)
def test_a_graph_that_is_off_is_named_and_leaves_no_bundle(
    checkpoint: Path,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    graph: str,
    by: float,
    code: str,
) -> None:
    take_graphs(monkeypatch, bundle, graph, by)
    out = tmp_path / "bundle"
    result = CliRunner().invoke(main, [str(checkpoint), "--out", str(out)])
    assert result.exit_code == 3
    assert f"{graph}." in result.stderr and code in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bundle.parity.json"]
    report = json.loads((tmp_path / "bundle.parity.json").read_text())
    assert report["passed"] is False and report["code"] == code
    assert set(report["value_errors"]) == set(GRAPHS)


def test_a_failed_export_leaves_the_old_bundle_as_it_was(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(bundle, out)
    with pytest.raises(InputError, match="exists"):
        export_bundle(checkpoint, out)
    take_graphs(monkeypatch, bundle, "text_encoder", 1.01)
    with pytest.raises(ParityError, match=r"text_encoder\.tokens"):
        export_bundle(checkpoint, out, overwrite=True)
    assert Bundle.load(out).manifest.files == Bundle.load(bundle).manifest.files


def test_ranks_are_judged_up_to_ties_only() -> None:
    reference = np.array([[0.9, 0.5, 0.5 - 1e-8, 0.1], [0.4, 0.3, 0.2, 0.1]])
    swapped_tie, swapped = reference.copy(), reference.copy()
    swapped_tie[0, [1, 2]] = swapped_tie[0, [2, 1]]
    swapped[1, [1, 2]] = swapped[1, [2, 1]]
    assert parity._compare_ranks(reference, reference) == (2, 2)
    assert parity._compare_ranks(reference, swapped_tie) == (1, 2)
    assert parity._compare_ranks(reference, swapped) == (1, 1)
    report = {
        "not_finite": [], "value_errors": {}, "value_tolerance": 1e-4, "max_score_error": 0.0,
        "score_tolerance": 1e-4, "images": 2, "top": 4, "lists_equal_up_to_ties": 1,
    }  # fmt: skip
    with pytest.raises(ParityError, match="ranks") as caught:
        parity.judge(report)
    assert caught.value.code == "parity-rank"
    with pytest.raises(ParityError, match="scores"):
        parity.judge(report | {"max_score_error": float("nan")})
    parity.judge(report | {"lists_equal_up_to_ties": 2})


def test_a_graph_outside_the_contract_is_refused(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    spec = graph_specs(Checkpoint.load(checkpoint).model(), 64)["similarity_head"]
    good = onnx.load(bundle / "similarity_head.onnx")
    path = tmp_path / "similarity_head.onnx"

    def refused(damage, match: str) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(good)
        damage(model)
        onnx.save(model, path)
        with pytest.raises(ParityError, match=match):
            check_graph(path, spec)

    refused(
        lambda m: m.graph.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", 2),
        "fixed batch of low",
    )
    refused(lambda m: m.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1)), "com.microsoft")
    refused(lambda m: m.opset_import[0].__setattr__("version", 21), "opset 21")
    refused(
        lambda m: m.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2), "d")), "type double"
    )


def test_a_folder_of_images_can_prove_it_if_it_holds_enough(checkpoint: Path, data: Path) -> None:
    with pytest.raises(InputError, match="too few images"):
        make_probe(Checkpoint.load(checkpoint), data)
    probe = make_probe(Checkpoint.load(checkpoint), data, count=20)
    assert probe.pixels.shape == (20, 64, 64, 3)


def test_what_is_no_checkpoint_is_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    path.write_text("not one")
    result = CliRunner().invoke(main, [str(path), "--out", str(tmp_path / "bundle")])
    assert result.exit_code == 1
    assert "not a skinret checkpoint" in result.stderr
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_a_full_size_swin_and_bert_pass_parity_with_open_axes(full_bundle: Path) -> None:
    manifest = Bundle.load(full_bundle).manifest
    found = manifest.parity
    assert manifest.layout.length == 2688
    assert found["max_score_error"] <= 1e-4
    assert found["lists_equal_up_to_ties"] == found["images"] == 16


def test_outputs_have_names_of_their_own() -> None:
    assert not set(OUTPUTS["composer"]) & {"low", "mid", "high"}
    assert tiny_config().to_dict() == ModelConfig.from_dict(tiny_config().to_dict()).to_dict()


def test_an_export_measures_what_lower_precision_does_to_the_ranks(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_graphs(monkeypatch, bundle)
    lower = [p for p in openvino.precisions() if p != "fp32"]
    said: list[str] = []
    checked = export_bundle(checkpoint, tmp_path / "bundle", notify=said.append)
    assert sorted(checked.manifest.precision_checks) == [f"openvino/{p}" for p in lower]
    for record in checked.manifest.precision_checks.values():
        assert record["queries"] == precision.MIN_QUERIES and len(record["rows"]) == 4
        assert record["passed"] is not bool(record["faults"])
        assert precision.format_record(record) in said


def test_other_words_must_have_the_criteria_of_the_model(checkpoint: Path, tmp_path: Path) -> None:
    data = CHECKLIST.to_dict()
    fewer = {name: data["criteria"][name] for name in ("streaks", "sex")}
    ways = [way for way in data["ways"]["en"] if way["criterion"] in fewer]
    other = Checklist.from_dict({**data, "criteria": fewer, "ways": {"en": ways}})
    with pytest.raises(InputError, match="other criteria than the model") as caught:
        export_bundle(checkpoint, tmp_path / "bundle", checklist=other)
    assert caught.value.code == "checklist-criteria" and not (tmp_path / "bundle").exists()
