"""Backbones of every family: three maps, the same when cut anywhere, built again from plain values."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextBackbone,
    ConvNextConfig,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersConfig,
    PreTrainedModel,
    ResNetBackbone,
    ResNetConfig,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinBackbone,
    SwinConfig,
)

from skinret_infer import InputError, MissingExtra
from skinret_training.backbones import Backbone, build_backbone, load_backbone

VIT = {"hidden_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2, "patch_size": 8, "image_size": 48}
TEXT = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 8,
}  # fmt: skip
TOWER = {**VIT, "intermediate_size": 32}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 2, 2, 1], "layer_type": "basic"}
SWIN = {"embed_dim": 8, "depths": [2, 2, 3, 2], "num_heads": [1, 1, 2, 2], "window_size": 2, "image_size": 64}
CONVNEXT = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
# name: how many blocks there are, and after how many of them the maps are taken; none if there is no cut
CUTS: dict[str, tuple[int, tuple[int, ...]]] = {
    "dinov2": (8, (4, 6, 8)),
    "registers": (8, (4, 6, 8)),
    "swin": (9, (4, 7, 9)),
    "resnet": (6, (3, 5, 6)),
    "clip": (8, (4, 6, 8)),
    "clip whole": (8, (4, 6, 8)),
    "siglip": (8, (4, 6, 8)),
    "siglip whole": (8, (4, 6, 8)),
    "convnext": (0, ()),
}
TIMM_VIT = {"patch_size": 8, "embed_dim": 16, "depth": 8, "num_heads": 2, "img_size": 48}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "timm vit": ("vit_tiny_patch16_224", TIMM_VIT),
    "timm vit, mean": ("vit_tiny_patch16_224", {**TIMM_VIT, "global_pool": "avg"}),
    "timm siglip": ("vit_base_patch16_siglip_224", TIMM_VIT),
    "timm eva02": ("eva02_tiny_patch14_224", TIMM_VIT),
    "timm resnet": ("resnet18", {"channels": (8, 12, 16, 20)}),
    "timm swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 2},
    ),
}


def randomized(model: Any) -> Any:
    """Change every parameter, also those that begin as zeros or ones."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    return {
        "dinov2": randomized(Dinov2Backbone(Dinov2Config(**VIT))),
        "registers": randomized(
            Dinov2WithRegistersBackbone(Dinov2WithRegistersConfig(**VIT, num_register_tokens=7))
        ),
        "swin": randomized(SwinBackbone(SwinConfig(**SWIN, out_indices=[2, 3, 4]))),
        "resnet": randomized(ResNetBackbone(ResNetConfig(**RESNET))),
        "clip": randomized(CLIPVisionModel(CLIPVisionConfig(**TOWER))),
        "clip whole": randomized(CLIPModel(CLIPConfig(text_config=TEXT, vision_config=TOWER))),
        "siglip": randomized(SiglipVisionModel(SiglipVisionConfig(**TOWER))),
        "siglip whole": randomized(SiglipModel(SiglipConfig(text_config=TEXT, vision_config=TOWER))),
        "convnext": randomized(ConvNextBackbone(ConvNextConfig(**CONVNEXT, out_indices=[2, 3, 4]))),
    }


@pytest.fixture(scope="module")
def folder(models: dict[str, PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers for each model; those of timm are made where a test needs them."""
    folder = tmp_path_factory.mktemp("backbones")
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return folder


def saved_timm(name: str, folder: Path) -> tuple[Any, str]:
    """Save a tiny model of timm as for the hub; return it, and the name for `load_backbone`."""
    timm = pytest.importorskip("timm")
    architecture, arguments = TIMM[name]
    torch.manual_seed(0)
    model = randomized(timm.create_model(architecture, **arguments))
    timm.models.save_for_hf(model, folder / "timm", safe_serialization=True)
    return model, f"timm:{folder / 'timm'}"


def pixels(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def check(backbone: Backbone) -> tuple[Tensor, ...]:
    """Check the maps, and that the plain configuration and the weights give them again; return them."""
    maps = backbone(pixels())
    assert [m.ndim for m in maps] == [4, 4, 4] and all(m.shape[2] == m.shape[3] for m in maps)
    again = build_backbone(json.loads(json.dumps(backbone.config)))
    assert not again.training
    again.load_state_dict(backbone.state_dict())
    for found, expected in zip(again(pixels()), maps, strict=True):
        torch.testing.assert_close(found, expected)
    return maps


def check_cuts(backbone: Backbone) -> None:
    """Check that the maps of a backbone are the same wherever it is cut."""
    maps, count = backbone(pixels()), len(backbone.blocks)
    for cut in range(count + 1):
        state = backbone.prefix(pixels(), cut)
        assert len(state) == 1 + sum(depth < cut for depth in backbone.depths)
        for found, expected in zip(backbone.rest(state, cut), maps, strict=True):
            torch.testing.assert_close(found, expected)
        torch.testing.assert_close(backbone.last_map(state[-1], cut), maps[2])


@pytest.mark.parametrize("name", CUTS)
@torch.no_grad()
def test_a_backbone_gives_three_maps_the_same_when_cut_anywhere(name: str, folder: Path) -> None:
    backbone, _ = load_backbone(str(folder / name), 64)
    maps = check(backbone)
    sides = [8, 8, 8] if backbone.depths == (4, 6, 8) else [8, 4, 2]
    assert [m.shape[-1] for m in maps] == sides
    blocks, depths = CUTS[name]
    if not blocks:
        with pytest.raises(InputError, match="cannot be trained apart") as caught:
            backbone.prefix(pixels(), 1)
        assert "ConvNextBackbone" in str(caught.value) and "--finetune-vision" in str(caught.value)
        return
    assert (len(backbone.blocks), backbone.depths) == (blocks, depths)
    check_cuts(backbone)


@pytest.mark.parametrize("name", [name for name, (blocks, _) in CUTS.items() if blocks])
def test_blocks_before_a_cut_have_no_gradient_and_those_after_it_have_one(name: str, folder: Path) -> None:
    backbone, _ = load_backbone(str(folder / name), 64)
    cut = len(backbone.blocks) // 2
    with torch.no_grad():
        state = backbone.prefix(pixels(), cut)
    torch.stack([m.square().mean() for m in backbone.rest(state, cut)]).sum().backward()
    for n, block in enumerate(backbone.blocks):
        assert all((p.grad is not None) == (n >= cut) for p in block.parameters()), n


@pytest.mark.parametrize("size", [48, 64])
@pytest.mark.parametrize("name", ["clip", "siglip", "clip whole", "siglip whole"])
@torch.no_grad()
def test_a_tower_gives_its_hidden_states_the_last_one_with_the_final_norm(
    name: str, size: int, folder: Path, models: dict[str, PreTrainedModel]
) -> None:
    model: Any = models[name]
    model = model.vision_model if "whole" in name else model
    found = load_backbone(str(folder / name), size)[0](pixels(size))
    states = model(pixels(size), output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
    expected = [states[4], states[6], model.post_layernorm(states[8])]
    for tokens, x in zip(expected, found, strict=True):
        patches = tokens[:, 1:] if "clip" in name else tokens
        torch.testing.assert_close(x.flatten(2).transpose(1, 2), patches)


@torch.no_grad()
def test_a_backbones_own_normalisation_comes_with_it(folder: Path) -> None:
    assert load_backbone(str(folder / "clip"), 64)[1] == {}
    file = folder / "clip" / "preprocessor_config.json"
    file.write_text('{"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]}')
    assert load_backbone(str(folder / "clip"), 64)[1] == {"mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}
    file.unlink()


def test_weights_in_half_precision_are_computed_with_in_single(folder: Path, tmp_path: Path) -> None:
    Dinov2Backbone.from_pretrained(folder / "dinov2").half().save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), 48)[0]
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert {p.dtype for p in build_backbone(backbone.config).parameters()} == {torch.float32}


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_a_model_of_timm_gives_the_maps_that_timm_gives(name: str, tmp_path: Path) -> None:
    model, source = saved_timm(name, tmp_path)
    backbone, recipe = load_backbone(source, 64)
    assert recipe["mean"] == tuple(model.pretrained_cfg["mean"])
    maps = check(backbone)
    is_vit = name in ("timm vit", "timm vit, mean", "timm siglip")
    if TIMM[name][1] is TIMM_VIT or is_vit:
        assert [m.shape[1:] for m in maps] == [(16, 8, 8)] * 3 and backbone.depths == (4, 6, 8)
        x, indices = pixels(48), [3, 5, 7]  # the size of the original, whose positions are not resampled
        maps = load_backbone(source, 48)[0](x)
    else:
        x, indices = pixels(), [-3, -2, -1]
    expected = [
        model.forward_intermediates(x, [n], norm=is_vit and n == 7, intermediates_only=True)[0]
        for n in indices
    ]
    for found, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, wanted)
    if is_vit:
        check_cuts(backbone)
    else:
        with pytest.raises(InputError, match="cannot be trained apart"):
            backbone.prefix(pixels(), 1)


def refused(name: str | Path, size: int = 64) -> str:
    with pytest.raises(InputError) as caught:
        load_backbone(str(name), size)
    assert caught.value.code in ("backbone", "option")
    return str(caught.value)


def test_a_backbone_without_three_depths_is_refused_with_what_it_has(tmp_path: Path) -> None:
    CLIPVisionModel(CLIPVisionConfig(**{**TOWER, "num_hidden_layers": 2})).save_pretrained(tmp_path / "clip")
    Dinov2Backbone(Dinov2Config(**{**VIT, "num_hidden_layers": 1})).save_pretrained(tmp_path / "dinov2")
    assert "three depths" in refused(tmp_path / "clip") and "found 2" in refused(tmp_path / "clip")
    assert "found 1" in refused(tmp_path / "dinov2")


@pytest.mark.parametrize("name", ["dinov2", "clip", "siglip whole"])
def test_an_image_size_that_patches_do_not_tile_is_refused(name: str, folder: Path) -> None:
    assert "a multiple of the patch size, 8" in refused(folder / name, 60)


def test_weights_that_are_not_there_are_never_random_ones(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "clip whole" / "config.json").read_text())
    assert "cannot be loaded" in refused(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "swin" / "model.safetensors").read_bytes())
    assert "missing tensors" in refused(tmp_path)


def test_a_folder_of_another_library_is_refused_with_the_cure(folder: Path, tmp_path: Path) -> None:
    assert "local folder" in refused(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "num_classes": 2}')
    assert "no model_type" in refused(tmp_path) and "timm:" in refused(tmp_path)
    pytest.importorskip("timm")
    assert "leave out timm:" in refused(f"timm:{folder / 'clip'}")
    assert "does not know" in refused("timm:no_such_model")
    assert "cannot be loaded" in refused(f"timm:{tmp_path}")  # no weights


def test_a_model_of_timm_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    _, source = saved_timm("timm vit", tmp_path)
    assert "a multiple of the patch size, 8" in refused(source, 60)
    (tmp_path / "timm" / "model.safetensors").write_bytes(
        (folder / "swin" / "model.safetensors").read_bytes()
    )
    assert "cannot be loaded" in refused(source)


def test_without_timm_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"skinret-infer\[timm\]") as caught:
        load_backbone(f"timm:{tmp_path}", 64)
    assert caught.value.code == "extra-missing"
