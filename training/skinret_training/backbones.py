"""Vision backbones of several libraries behind one class: maps of three depths, blocks, and a cut.

Shapes: B images of S x S pixels, a map of h x w positions with d channels is (B, d, h, w).
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, CLIPVisionModel, SiglipVisionModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from skinret_infer._extras import missing_extra
from skinret_infer.errors import InputError

from .hub import ATTENTION, load_error, only_local, plain_config, read_config

FeatureMaps: TypeAlias = tuple[Tensor, Tensor, Tensor]  # X^L, X^M, X^H, each (B, d, h, w)
State: TypeAlias = tuple[Tensor, ...]
TIMM = "timm:"  # before the name or folder of a timm model
_TOWERS = {"clip_vision_model": CLIPVisionModel, "siglip_vision_model": SiglipVisionModel}


class Backbone(nn.Module):
    """A vision backbone: from normalised pixels to maps of three depths, in one go or cut between two blocks.

    model : the library's module, with the weights.
    config : plain values from which `build_backbone` builds it again.
    blocks : the modules of each block, in order; none if this backbone cannot be cut.
    depths : after how many blocks the three maps are taken.
    special : of a plain ViT, how many tokens are no patches; None for another backbone.
    """

    model: Any
    special: int | None = None

    def __init__(
        self,
        model: nn.Module,
        config: Mapping[str, Any],
        blocks: Sequence[Sequence[nn.Module]] = (),
        depths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.depths = tuple(depths)
        self._blocks = tuple(nn.ModuleList(modules) for modules in blocks)

    @property
    def blocks(self) -> tuple[nn.ModuleList, ...]:
        """The blocks in order. Raises InputError for a backbone that cannot be cut."""
        if not self._blocks:
            raise InputError(
                "the blocks of this backbone cannot be trained apart",
                code="option",
                expected="a DINOv2, Swin, ResNet, CLIP or SigLIP, or a ViT of timm",
                found=type(self.model).__name__,
                cure="with skinret-train, use --finetune-vision full or none",
            )
        return self._blocks

    def forward(self, x: Tensor) -> FeatureMaps:
        """Normalised pixels (B, 3, S, S) -> the three maps."""
        return self.rest(self.prefix(x, 0), 0)

    def prefix(self, x: Tensor, blocks: int) -> State:
        """Normalised pixels (B, 3, S, S) -> the state after the first `blocks` blocks.

        It holds the outputs of the depths before the cut, without their norms, and last the input of the
        next block.
        """
        before = self.blocks[:blocks]  # first, because it raises for a backbone that cannot be cut
        outputs = enumerate(self._outputs(self._embed(x), before))
        return tuple(y for n, y in outputs if n in self.depths or n == blocks)

    def rest(self, state: State, blocks: int) -> FeatureMaps:
        """Return the three maps from the state after the first `blocks` blocks."""
        outputs = enumerate(self._outputs(state[-1], self.blocks[blocks:]), blocks)
        taken = (*state[:-1], *(y for n, y in outputs if n in self.depths))
        return cast(FeatureMaps, tuple(self._map(level, y) for level, y in enumerate(taken)))

    def last_map(self, last: Tensor, blocks: int) -> Tensor:
        """Return X^H alone, from the last tensor of the state after the first `blocks` blocks."""
        *_, x = self._outputs(last, self.blocks[blocks:])
        return self._map(2, x)

    def _outputs(self, x: Tensor, blocks: Sequence[nn.ModuleList]) -> Iterator[Tensor]:
        """Yield x, and the output of each of some consecutive blocks."""
        yield x
        for block in blocks:
            x = self._apply_block(block, x)
            yield x

    def _embed(self, x: Tensor) -> Tensor:
        """Return the input of the first block."""
        raise NotImplementedError

    def _apply_block(self, block: nn.ModuleList, x: Tensor) -> Tensor:
        for module in block:
            x = module(x)
        return x

    def _map(self, level: int, x: Tensor) -> Tensor:
        """Return the map of a level (0, 1, 2) from what its depth gave."""
        raise NotImplementedError


def load_backbone(name: str, image_size: int) -> tuple[Backbone, dict[str, Any]]:
    """Load a vision backbone with its weights.

    name : a hub name or a local folder of transformers; `timm:` before a name or a local folder of timm.
    image_size : S. Position embeddings are resampled to it once, so that the exported graph does not.

    Returns the backbone and its normalisation of RGB in [0, 1] (`mean`, `std`; empty if it states none).
    Raises InputError for a backbone that cannot be loaded or does not give maps at three depths.
    """
    if name.startswith(TIMM):
        return _load_timm(name.removeprefix(TIMM), image_size)
    config = read_config(name, "vision")
    config = getattr(config, "vision_config", config)  # of a model with two towers
    load = _load_tower if config.model_type in _TOWERS else _load_staged
    return load(name, config, image_size), _normalisation(name)


def build_backbone(config: Mapping[str, Any]) -> Backbone:
    """Build a backbone from its configuration, with random weights."""
    if config.get("library") == "timm":
        return _build_timm(config)
    parsed = AutoConfig.for_model(**config)
    model = _class_of(parsed)._from_config(parsed, attn_implementation=ATTENTION)
    return _adapt(model)


def _three_depths(name: str, count: int) -> list[int]:
    """Return which of `count` stages or layers give the three maps.

    These are the last three of a hierarchical backbone, and n/2, 3n/4 and n of a plain ViT of n layers.
    """
    if count < 3:
        raise InputError(
            f"{name!r} does not give maps at three depths",
            code="backbone",
            expected="a backbone of at least three stages or layers, such as Swin, ResNet, DINOv2 or CLIP",
            found=str(count),
        )
    return [count - 2, count - 1, count] if count < 6 else [count // 2, 3 * count // 4, count]


def _check_patch(image_size: int, patch: Any) -> int:
    """Return the side of a patch. Raises InputError if patches do not tile the image."""
    side = int(patch[0] if isinstance(patch, tuple | list) else patch)
    if image_size % side:
        raise InputError(
            "the image size cannot be used",
            code="option",
            expected=f"a multiple of the patch size, {side}",
            found=str(image_size),
        )
    return side


def _as_map(tokens: Tensor, special: int | None = None) -> Tensor:
    """(B, special + h w, d) -> (B, d, h, w); the special tokens, such as the class token, are dropped."""
    batch, count, channels = tokens.shape  # len() would fix the batch of the exported graph
    special = special or 0
    side = math.isqrt(count - special)
    return tokens[:, special:].transpose(1, 2).reshape(batch, channels, side, side)


# -- transformers --


def _class_of(config: Any) -> Any:
    # AutoBackbone.from_pretrained asks the hub even for a local folder; the concrete class does not.
    if tower := _TOWERS.get(config.model_type):
        return tower
    try:
        return MODEL_FOR_BACKBONE_MAPPING[type(config)]
    except KeyError:
        raise InputError(
            "the vision model does not give maps",
            code="backbone",
            expected="Swin, ResNet, DINOv2 or another backbone of transformers, CLIP, SigLIP, or timm:NAME",
            found=f"model type {config.model_type}",
        ) from None


def _adapt(model: Any) -> Backbone:
    adapters = {
        "clip_vision_model": _Tower,
        "siglip_vision_model": _Tower,
        "dinov2": _Dinov2,
        "dinov2_with_registers": _Dinov2,
        "swin": _Swin,
        "resnet": _ResNet,
    }
    backbone: Backbone = adapters.get(model.config.model_type, _Staged)(model)
    return backbone.eval()


def _load_weights(name: str, config: Any) -> Any:
    """Load a model of transformers. Raises InputError if its weights are missing."""
    try:
        model, report = _class_of(config).from_pretrained(
            name,
            config=config,
            dtype=torch.float32,  # whatever the file has
            attn_implementation=ATTENTION,
            output_loading_info=True,
            **only_local(name),
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise load_error(name, "vision model", error) from None
    # A backbone class adds norms of its own, which start as they should; a mask token is not used.
    missing = sorted(k for k in report["missing_keys"] if "norm" not in k and "mask_token" not in k)
    if missing:
        raise InputError(
            f"the weights of {name!r} are not those of its configuration",
            code="backbone",
            expected=f"the weights of a {type(model).__name__}",
            found=f"{len(missing)} missing tensors, such as {missing[0]}",
            cure="download the whole model again",
        )
    return model


def _normalisation(name: str) -> dict[str, Any]:
    try:
        values = ImageProcessingMixin.get_image_processor_dict(name, **only_local(name))[0]
    except OSError:  # the backbone comes without a preprocessor
        return {}
    return {k: tuple(values[f"image_{k}"]) for k in ("mean", "std") if values.get(f"image_{k}")}


def _load_staged(name: str, config: Any, image_size: int) -> Backbone:
    _class_of(config)  # a model that is no backbone has no stages to speak of
    stages = len(config.stage_names) - 1  # the stem is no stage
    config.out_features = None
    config.out_indices = _three_depths(name, stages)
    model = _load_weights(name, config)
    embeddings: Any = getattr(model, "embeddings", None)
    if (
        hasattr(embeddings, "interpolate_pos_encoding")
        and getattr(embeddings, "position_embeddings", None) is not None
    ):
        patches = embeddings.patch_embeddings
        embeddings.position_embeddings = _resample(embeddings, model.config, image_size, 1)
        patches.image_size = (image_size, image_size)
        model.config.image_size = image_size
    return _adapt(model)


def _load_tower(name: str, config: Any, image_size: int) -> Backbone:
    _three_depths(name, config.num_hidden_layers)
    config.vision_use_head = False  # SigLIP's pooling
    model = _load_weights(name, config)
    embeddings = _tower(model).embeddings
    special = embeddings.num_positions - embeddings.num_patches
    positions = _resample(embeddings, config, image_size, special)[0]
    model.config.image_size = image_size
    rebuilt = type(embeddings)(model.config)
    rebuilt.load_state_dict(embeddings.state_dict() | {"position_embedding.weight": positions})
    _tower(model).embeddings = rebuilt
    return _adapt(model)


def _tower(model: Any) -> Any:
    return getattr(model, "vision_model", model)  # older releases of transformers wrap the tower


@torch.no_grad()
def _resample(embeddings: Any, config: Any, image_size: int, special: int) -> nn.Parameter:
    """Return the position embeddings (1, special + h w, d) of an image size."""
    side = image_size // _check_patch(image_size, config.patch_size)
    blank = torch.zeros(1, special + side * side, config.hidden_size)
    return nn.Parameter(embeddings.interpolate_pos_encoding(blank, image_size, image_size).clone())


class _Staged(Backbone):
    """Any backbone of transformers. A subclass knows the blocks of a family, and computes the same maps."""

    def __init__(
        self, model: Any, blocks: Sequence[Sequence[nn.Module]] = (), depths: Sequence[int] = ()
    ) -> None:
        super().__init__(model, plain_config(model.config), blocks, depths)

    def forward(self, x: Tensor) -> FeatureMaps:
        return cast(FeatureMaps, tuple(self.model(x).feature_maps))


class _Dinov2(_Staged):
    def __init__(self, model: Any) -> None:
        super().__init__(model, [[layer] for layer in model.encoder.layer], model.out_indices)
        self.special = 1 + getattr(model.config, "num_register_tokens", 0)

    def _embed(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.model.embeddings(x))

    def _map(self, level: int, x: Tensor) -> Tensor:
        return _as_map(self.model.layernorm(x) if self.model.config.apply_layernorm else x, self.special)


class _Swin(_Staged):
    """Patch merging belongs to the block after it, so that a map is the output of the block before it."""

    def __init__(self, model: Any) -> None:
        stages = model.swin.encoder.layers
        blocks = [[block] for stage in stages for block in stage.blocks]
        ends = [0, *itertools.accumulate(len(stage.blocks) for stage in stages)]
        for stage, end in zip(stages[:-1], ends[1:-1], strict=True):
            blocks[end].insert(0, stage.downsample)
        super().__init__(model, blocks, [ends[n] for n in model.out_indices])

    def _embed(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.model.swin.embeddings(x)[0])

    def _apply_block(self, block: nn.ModuleList, x: Tensor) -> Tensor:
        *merges, layer = block
        for merge in merges:
            x = merge(x, _sides(x))
        return cast(Tensor, layer(x, _sides(x), always_partition=True)[0])

    def _map(self, level: int, x: Tensor) -> Tensor:
        return _as_map(self.model.hidden_states_norms[self.model.out_features[level]](x))


def _sides(tokens: Tensor) -> tuple[int, int]:
    side = math.isqrt(tokens.shape[1])
    return side, side


class _ResNet(_Staged):
    def __init__(self, model: Any) -> None:
        stages = model.encoder.stages
        ends = [0, *itertools.accumulate(len(stage.layers) for stage in stages)]
        blocks = [[layer] for stage in stages for layer in stage.layers]
        super().__init__(model, blocks, [ends[n] for n in model.out_indices])

    def _embed(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.model.embedder(x))

    def _map(self, level: int, x: Tensor) -> Tensor:
        return x


class _Tower(Backbone):
    """The vision tower of CLIP or SigLIP. The final norm is applied to the last map alone."""

    def __init__(self, model: Any) -> None:
        layers = _tower(model).encoder.layers
        depths = _three_depths(model.config.model_type, len(layers))
        super().__init__(model, plain_config(model.config), [[layer] for layer in layers], depths)
        embeddings = _tower(model).embeddings
        self.special = embeddings.num_positions - embeddings.num_patches  # CLIP's class token

    def _embed(self, x: Tensor) -> Tensor:
        tower = _tower(self.model)
        x = tower.embeddings(x)
        # CLIP has this norm, and spells it so.
        return cast(Tensor, tower.pre_layrnorm(x) if hasattr(tower, "pre_layrnorm") else x)

    def _apply_block(self, block: nn.ModuleList, x: Tensor) -> Tensor:
        return cast(Tensor, block[0](x, None))  # no mask

    def _map(self, level: int, x: Tensor) -> Tensor:
        return _as_map(_tower(self.model).post_layernorm(x) if level == 2 else x, self.special)


# -- timm --


def _load_timm(name: str, image_size: int) -> tuple[Backbone, dict[str, Any]]:
    timm = _import_timm()
    local = Path(name).is_dir()
    try:
        facts, architecture, arguments = _read_timm_folder(name) if local else _read_timm_hub(timm, name)
        arguments |= {"img_size": image_size} if facts.get("fixed_input_size") else {}
        config = {"library": "timm", "architecture": architecture, "arguments": arguments}
        model = timm.create_model(f"local-dir:{name}" if local else name, pretrained=True, **arguments)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AssertionError) as error:
        raise load_error(f"{TIMM}{name}", "vision model", error) from None
    if patches := getattr(model, "patch_embed", None):
        _check_patch(image_size, getattr(patches, "patch_size", 1))
    recipe = {key: tuple(facts[key]) for key in ("mean", "std") if facts.get(key)}
    return _adapt_timm(model, config), recipe


def _build_timm(config: Mapping[str, Any]) -> Backbone:
    model = _import_timm().create_model(config["architecture"], pretrained=False, **config["arguments"])
    return _adapt_timm(model, config)


def _import_timm() -> Any:
    try:
        import timm
    except (
        ImportError,
        RuntimeError,
    ) as error:  # RuntimeError: a torchvision that was built for another torch
        raise missing_extra("a backbone of timm cannot be used", error, "timm") from None
    return timm


def _read_timm_folder(name: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Return what config.json states: facts about the weights, architecture and its arguments."""
    values = json.loads((Path(name) / "config.json").read_text("utf-8"))
    if "architecture" not in values:
        kind = values.get("model_type")
        raise ValueError(
            f"a folder of transformers, model type {kind}: leave out {TIMM}" if kind else "no architecture"
        )
    return values.get("pretrained_cfg", values), values["architecture"], values.get("model_args", {})


def _read_timm_hub(timm: Any, name: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    source, separator, repository = name.partition(":")
    if separator and source == "hf-hub":
        facts, architecture, arguments = timm.models.load_model_config_from_hf(repository)
        return facts, architecture, dict(arguments)
    if (known := timm.get_pretrained_cfg(name)) is None:
        raise ValueError("a name that timm does not know")
    return known.to_dict(), name, {}


def _adapt_timm(model: Any, config: Mapping[str, Any]) -> Backbone:
    from timm.models.vision_transformer import VisionTransformer

    for module in model.modules():
        if hasattr(module, "fused_attn"):  # as in transformers
            module.fused_attn = False
    label = f"{TIMM}{config['architecture']}"
    count = len(model.feature_info) if hasattr(model, "forward_intermediates") else 0
    depths = _three_depths(label, count)
    if len({feature["reduction"] for feature in model.feature_info}) > 1:
        depths = [count - 2, count - 1, count]
    model.prune_intermediate_layers([n - 1 for n in depths], prune_norm=False, prune_head=True)
    return (_TimmViT if isinstance(model, VisionTransformer) else _Timm)(model, config, depths=depths).eval()


class _Timm(Backbone):
    """Any model of timm that gives intermediate maps; they are taken as timm gives them."""

    def forward(self, x: Tensor) -> FeatureMaps:
        indices = [n - 1 for n in self.depths]
        maps = self.model.forward_intermediates(
            x, indices=indices, output_fmt="NCHW", intermediates_only=True
        )
        return cast(FeatureMaps, tuple(maps))


class _TimmViT(Backbone):
    """A plain ViT of timm. The final norm is applied to the last map alone."""

    def __init__(self, model: Any, config: Mapping[str, Any], depths: Sequence[int]) -> None:
        super().__init__(model, config, [[block] for block in model.blocks], depths)
        self.special = model.num_prefix_tokens

    def _embed(self, x: Tensor) -> Tensor:
        x = self.model._pos_embed(self.model.patch_embed(x))
        return cast(Tensor, self.model.norm_pre(x))

    def _map(self, level: int, x: Tensor) -> Tensor:
        return _as_map(self.model.norm(x) if level == 2 else x, self.special)
