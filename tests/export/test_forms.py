"""What is exported in a Swin's place gives its numbers, and what has no such form is exported as it is."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import SWIN, tiny_config

from skinret_export.graphs import check_graph, graph_specs, write_graph
from skinret_export.swin import export_form
from skinret_training.model import ModelConfig, Skinret, VisualEncoder

SHIFTED = {**SWIN, "depths": [2, 2, 2, 2]}  # windows of 2 on maps of 16, 8, 4 and 2, the last of one window


def randomized(module: torch.nn.Module) -> Any:
    """Change every parameter, also those that begin as zeros or ones."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    return module.eval()


def drawn_pixels(batch: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(vision=SHIFTED),
        tiny_config(vision=SHIFTED, max_map_size=2),
        tiny_config(vision=SHIFTED, tta=4),
        tiny_config(vision=SHIFTED, tta=8, neck="fused", width=12),
        tiny_config(vision=SHIFTED | {"qkv_bias": False}, width=12),
        tiny_config(vision=SHIFTED | {"out_features": ["stage1", "stage2", "stage4"]}),
        tiny_config(vision=SHIFTED | {"out_features": ["stage1", "stage2", "stage3"]}),
        tiny_config(vision=SHIFTED | {"patch_size": 2, "window_size": 4}),
        tiny_config(
            vision=SHIFTED | {"depths": [1, 2, 3, 2], "window_size": 3}, image_size=96, max_map_size=12
        ),
        tiny_config(mean=(0.7, 0.5, 0.1), std=(0.1, 0.2, 0.3)),
    ],
    ids=[
        "plain", "shifted", "pooled", "tta", "fused", "no qkv bias", "a stage skipped",
        "the last not given", "patch 2, window 4", "window 3", "mean and std",
    ],
)  # fmt: skip
@torch.no_grad()
def test_the_form_gives_the_numbers_of_the_encoder_and_leaves_it_alone(config: ModelConfig) -> None:
    encoder = randomized(VisualEncoder(config))
    pixels = drawn_pixels(3, config.image_size)
    expected = encoder(pixels)
    form = export_form(encoder, config.image_size)
    assert form is not encoder
    for found, still, x in zip(form(pixels), encoder(pixels), expected, strict=True):
        assert torch.equal(still, x)
        torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "vision",
    [
        {"use_absolute_embeddings": True},
        {"window_size": 3},
        {"window_size": 4},
        {"patch_size": 5, "window_size": 1},
        {"patch_size": [4, 2]},
        {"out_features": ["stem", "stage2", "stage3"]},
        {"model_type": "resnet", "hidden_sizes": [8, 8, 16, 32], "layer_type": "basic"},
    ],
    ids=["positions", "not tiled", "less than a window", "padded pixels", "oblong", "stem", "no Swin"],
)
def test_what_has_no_form_is_exported_as_it_is(vision: dict[str, Any]) -> None:
    encoder = VisualEncoder(tiny_config(vision=SWIN | vision, max_map_size=16))
    assert export_form(encoder, 64) is encoder


def test_the_graph_does_what_is_needed_and_no_more(tmp_path: Path) -> None:
    model = randomized(Skinret(tiny_config(vision=SHIFTED)))
    spec, path = graph_specs(model, 64)["visual_encoder"], tmp_path / "visual_encoder.onnx"
    write_graph(spec, path)
    check_graph(path, spec)
    count = Counter(node.op_type for node in onnx.load(path).graph.node)
    blocks, merges, maps = 8, 3, 3
    assert not {"Conv", "Slice", "Concat", "Expand", "Shape"} & count.keys()
    assert count["Transpose"] == 4 * blocks + 1  # queries, keys, values, what is attended; pixels
    assert count["Gather"] <= blocks + merges + maps
    assert count["Div"] == count["Erf"] == blocks  # of GELU alone: none of the pixels, none of the scores
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for pixels in (drawn_pixels(1, 64), drawn_pixels(3, 64)):
        with torch.no_grad():
            expected = model.visual_encoder(pixels)
        for found, x in zip(session.run(None, {"pixels": pixels.numpy()}), expected, strict=True):
            np.testing.assert_allclose(found, x.numpy(), atol=1e-5, rtol=1e-5)


VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "patch_size": 16,
    "image_size": 64,
}
TIMM_VIT = {"patch_size": 16, "embed_dim": 16, "depth": 3, "num_heads": 2, "img_size": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "dinov2": {**VIT, "model_type": "dinov2", "out_indices": [1, 2, 3]},
    "resnet": {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1],
        "layer_type": "bottleneck", "out_indices": [2, 3, 4],
    },
    "clip": {**VIT, "model_type": "clip_vision_model", "intermediate_size": 32},
    "siglip": {**VIT, "model_type": "siglip_vision_model", "intermediate_size": 32, "vision_use_head": False},
    "timm vit": {"library": "timm", "architecture": "vit_tiny_patch16_224", "arguments": TIMM_VIT},
    "timm eva02": {"library": "timm", "architecture": "eva02_tiny_patch14_224", "arguments": TIMM_VIT},
    "timm convnext": {
        "library": "timm", "architecture": "convnext_atto",
        "arguments": {"dims": (8, 12, 16, 20), "depths": (1, 1, 1, 1)},
    },
    "timm swin": {
        "library": "timm", "architecture": "swin_tiny_patch4_window7_224",
        "arguments": {
            "img_size": 64, "embed_dim": 8, "depths": (2, 1, 1, 1), "num_heads": (1, 1, 2, 2),
            "window_size": 2,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_of_every_family_keeps_the_contract_and_the_numbers(family: str, tmp_path: Path) -> None:
    if family.startswith("timm"):
        pytest.importorskip("timm")
    model = randomized(Skinret(tiny_config(vision=FAMILIES[family])))
    spec, path = graph_specs(model, 64)["visual_encoder"], tmp_path / "visual_encoder.onnx"
    write_graph(spec, path)
    check_graph(path, spec)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for pixels in (drawn_pixels(1, 64), drawn_pixels(3, 64)):
        with torch.no_grad():
            expected = model.visual_encoder(pixels)
        for found, x in zip(session.run(None, {"pixels": pixels.numpy()}), expected, strict=True):
            np.testing.assert_allclose(found, x.numpy(), atol=1e-4, rtol=1e-4)
