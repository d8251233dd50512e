"""The model of Wang et al. 2026: visual encoder, text encoder, composer, similarity head.

Shapes: B images, levels i in {L, M, H} (low, mid, high), maps X^i of h x w x d_i stored channels-last as
(B, h, w, d_i), n text tokens, k regions. A query passes visual encoder, composer (with its text) and head.
A case passes visual encoder and head.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from skinret_infer.descriptor import GROUP_WEIGHT, Layout
from skinret_infer.errors import InputError

from .backbones import Backbone, FeatureMaps, build_backbone, load_backbone
from .hub import ATTENTION, load_error, only_local, plain_config, read_config
from .typicality import Typicality

Maps: TypeAlias = tuple[Tensor, Tensor, Tensor]  # X^L, X^M, X^H
_USUAL_TOKENS = 40  # of a text; only keeps the sum of its vectors at the size of their mean
_CONCEPT_GAIN = 3.0  # of the maps' means before the concept heads, which weight decay then holds less
EPS = 1e-6  # the smallest norm that a vector is divided by
AGGREGATIONS = ("normalized", "mean", "max", "concat")
NECKS = ("level", "fused")
FUSIONS = ("cross-attention", "additive", "both")
SYMMETRIES = (1, 2, 4, 8)  # how many symmetries of the square an option can use


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything that builds the model, as plain values; the weights come from a state dict."""

    vision: Mapping[str, Any]  # a backbone's configuration, for build_backbone
    text: Mapping[str, Any]  # a BERT-family encoder's configuration
    image_size: int = 224
    # Of RGB in [0, 1]. The defaults are those of ImageNet, on which the backbones were trained.
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    # Number of orientations of each picture. Their maps are turned back and averaged; the work grows with it.
    tta: int = 1
    # Larger maps are average-pooled to at most this side, because attention costs its fourth power.
    max_map_size: int = 14
    # d_i after a learned projection; None keeps the backbone's channels, and the backbone must be trained.
    width: int | None = None
    neck: str = "level"  # "fused": each level is projected from all three maps, and `width` is required
    fusion: str = "cross-attention"  # of text and maps: a cross-modal transformer, an additive shift, or both
    layers: int = 1  # of the cross-modal transformer, per level
    head_width: int = 64  # of an attention head
    dropout: float = 0.1  # in the composer, and of the channels of a fused neck
    regions: int = 8  # k
    aggregation: str = "normalized"  # of the k regions; "mean" is Eq. 7 as printed, where k masks act as one
    beta: float = 0.6  # Eq. 9
    concepts: Mapping[str, Sequence[str]] = field(default_factory=dict)  # names and values; the group first
    gamma: float = 0.0  # weight of concept similarity; 0: the score is the paper's S alone
    group_weight: float = GROUP_WEIGHT  # among the concepts
    typicality: bool = False  # the visual encoder also says how unlike the training pictures a picture is

    def __post_init__(self) -> None:
        if self.tta not in SYMMETRIES:
            raise InputError(
                "tta cannot be used",
                code="option",
                expected="1, 2, 4 or 8",
                found=str(self.tta),
            )
        check_choices(self, "the model's option", aggregation=AGGREGATIONS, neck=NECKS, fusion=FUSIONS)
        if self.neck == "fused" and not self.width:
            raise InputError(
                "a fused neck needs a width", code="option", expected="a width such as 64", found="none"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values only."""
        return cast(dict[str, Any], json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ModelConfig":
        """Build the configuration from the result of `to_dict`."""
        return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})


def check_choices(config: object, label: str, **choices_of: Sequence[str]) -> None:
    """Raise InputError if a field of a configuration has a value that is not among its choices."""
    for name, choices in choices_of.items():
        if (found := getattr(config, name)) not in choices:
            raise InputError(
                f"{label} {name} has an unknown value",
                code="option",
                expected=", ".join(choices),
                found=repr(found),
            )


def apply_dihedral(x: Tensor, view: int) -> Tensor:
    """Apply symmetry `view` (0 to 7) of the square to pixels or maps (B, S, S, d); view 0 returns x itself.

    The first two views are the picture and its mirror image, the first four are the flips, and the last four
    are the flips of the transposed picture.
    """
    if view & 4:
        x = x.transpose(1, 2)
    flips = [axis for bit, axis in ((1, 2), (2, 1)) if view & bit]
    return x.flip(flips) if flips else x


def invert_dihedral(x: Tensor, view: int) -> Tensor:
    """Undo `apply_dihedral`."""
    x = apply_dihedral(x, view & 3)
    return x.transpose(1, 2) if view & 4 else x


class VisualEncoder(nn.Module):
    """Compute maps of three depths from pixels: a backbone, pooling, projection to `width`."""

    mean: Tensor
    std: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, config: ModelConfig, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.backbone = backbone or build_backbone(config.vision)
        self.max_map_size = config.max_map_size
        self.tta = config.tta
        self.register_buffer("mean", 255 * torch.tensor(config.mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(config.std), persistent=False)
        with torch.no_grad():
            blank = torch.zeros(1, config.image_size, config.image_size, 3, dtype=torch.uint8)
            shapes = [tuple(x.shape[1:]) for x in self.backbone_maps(blank)]
        channels = [config.width or d for _, _, d in shapes]
        self.typicality = Typicality(shapes[0][2]) if config.typicality else None
        self.shapes = tuple((h, w, d) for (h, w, _), d in zip(shapes, channels, strict=True))
        self.fused = config.neck == "fused"
        sides = sorted({h for h, _, _ in shapes})
        if self.fused and any(side % sides[0] for side in sides):
            raise InputError(
                "the maps of the three depths cannot be fused",
                code="option",
                expected="sides that are multiples of the smallest side",
                found=", ".join(map(str, sides)),
                cure="choose another --max-map-size or --image-size, or --neck level",
            )
        self.dropout = nn.Dropout(config.dropout)
        self.projections: nn.ModuleList
        if self.fused:
            total = sum(d for _, _, d in shapes)
            self.register_buffer("centre", torch.zeros(total))
            self.register_buffer("scale", torch.ones(total))
            self.projections = nn.ModuleList(nn.Linear(total, d) for d in channels)
        else:
            self.projections = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, d)) if config.width else nn.Identity()
                for (_, _, inputs), d in zip(shapes, channels, strict=True)
            )

    def forward(self, pixels: Tensor) -> Maps:
        """pixels (B, S, S, 3) uint8 RGB -> X^L, X^M, X^H, each (B, h, w, d)."""
        return self._average(self._oriented_maps(pixels))

    def with_distance(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return the maps, and the distance of each picture from the training pictures (B,)."""
        assert self.typicality is not None
        maps = self._oriented_maps(pixels)
        upright = maps[0].reshape(self.tta, -1, *maps[0].shape[1:])[0]
        return (*self._average(maps), self.typicality(upright))

    def _oriented_maps(self, pixels: Tensor) -> Maps:
        """Return the backbone's maps of each orientation of the pictures (tta * B, h, w, d)."""
        if self.tta == 1:
            return self.backbone_maps(pixels)
        return self.backbone_maps(torch.cat([apply_dihedral(pixels, view) for view in range(self.tta)]))

    def _average(self, maps: Maps) -> Maps:
        """Project the maps of all orientations, turn them back and average them."""
        if self.tta == 1:
            return self.project(maps)
        views = range(self.tta)
        means = []
        for x in self.project(maps):
            by_view = x.reshape(len(views), -1, *x.shape[1:]).unbind()
            upright = [invert_dihedral(m, view) for m, view in zip(by_view, views, strict=True)]
            means.append(torch.stack(upright).mean(0))
        return cast(Maps, tuple(means))

    def backbone_maps(self, pixels: Tensor) -> Maps:
        """Return the backbone's maps, pooled. Those of a frozen backbone never change and can be cached."""
        return self._pooled(self.backbone(self._normalized(pixels)))

    def maps_and_state(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the backbone's maps and what the block before the last stage gave, to be cached."""
        cut = self.backbone.depths[1]
        state = self.backbone.prefix(self._normalized(pixels), cut)
        return (*self._pooled(self.backbone.rest(state, cut)), state[-1])

    def last_map(self, state: Tensor) -> Tensor:
        """Return the backbone's X^H, as in `backbone_maps`, from the state that `maps_and_state` returned."""
        x = self.backbone.last_map(state, self.backbone.depths[1])
        return self._pool(x).permute(0, 2, 3, 1)

    def last_stage(self) -> tuple[nn.Module, ...]:
        """Return the backbone's blocks between X^M and X^H."""
        return self.backbone.blocks[self.backbone.depths[1] :]

    def _normalized(self, pixels: Tensor) -> Tensor:  # (B, S, S, 3) -> (B, 3, S, S)
        return ((pixels.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def _pooled(self, maps: FeatureMaps) -> Maps:
        return cast(Maps, tuple(self._pool(m).permute(0, 2, 3, 1) for m in maps))

    def project(self, maps: Maps) -> Maps:
        """Apply the learned projection of each level."""
        inputs = self.projection_inputs(maps)
        return cast(Maps, tuple(p(x) for p, x in zip(self.projections, inputs, strict=True)))

    def projection_inputs(self, maps: Maps) -> Maps:
        """Return the input of each projection: the level's maps, or for a fused neck all maps on its grid."""
        if not self.fused:
            return maps
        sides = {m.shape[1] for m in maps}
        levels = self._normalize(maps)
        fused = {side: (self._concatenate(levels, side) - self.centre) * self.scale for side in sides}
        if self.training:  # drop whole channels, so that the projection depends on none
            mask = self.dropout(torch.ones_like(fused[min(sides)][:, :1, :1]))
            fused = {side: x * mask for side, x in fused.items()}
        return cast(Maps, tuple(fused[m.shape[1]] for m in maps))

    @torch.no_grad()
    def standardize(self, maps: Maps) -> None:
        """Take the centre and scale of a fused neck's channels from the maps of the training cases.

        Frozen maps share a large mean, so that all their cosines are near one. Centring spreads them.
        """
        mean = self._concatenate(self._normalize(maps), min(m.shape[1] for m in maps)).mean((1, 2))  # (N, d)
        self.centre.copy_(mean.mean(0))
        self.scale.copy_(1 / (mean.std(0) + 1e-3))

    @staticmethod
    def _normalize(maps: Maps) -> list[Tensor]:
        return [F.layer_norm(x, x.shape[-1:]) for x in maps]

    @staticmethod
    def _concatenate(maps: list[Tensor], side: int) -> Tensor:
        return torch.cat([_resize(x, side) for x in maps], -1)

    def _pool(self, x: Tensor) -> Tensor:  # (B, d, h, w)
        factor = -(-x.shape[-1] // self.max_map_size)
        if x.shape[-1] % factor or x.shape[-2] % factor:
            raise InputError(
                "the maps cannot be pooled evenly",
                code="option",
                expected="a --max-map-size that divides the sides of the maps",
                found=f"maps of {x.shape[-2]} x {x.shape[-1]}, --max-map-size {self.max_map_size}",
                cure="choose another --max-map-size",
            )
        return F.avg_pool2d(x, factor) if factor > 1 else x


class TextEncoder(nn.Module):
    """Compute token vectors from token ids with an encoder of the BERT family."""

    def __init__(self, config: ModelConfig, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder or build_text_encoder(config.text)
        self.channels = int(cast(Any, self.encoder).config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, n) int64, (B, n) int64 -> (B, n, d_T)."""
        return cast(
            Tensor, self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        )


class CrossModalLayer(nn.Module):
    """A transformer layer in which image tokens attend to each other and to text tokens in one softmax."""

    def __init__(self, d: int, config: ModelConfig) -> None:
        super().__init__()
        self.heads = max(1, d // config.head_width)
        self.norm_image, self.norm_text, self.norm_ffn = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))
        self.ffn = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """x (B, p, d) image tokens, text (B, n, d), bias (B, 1, 1, p + n) on the logits -> (B, p, d)."""
        z = self.norm_image(x)
        tokens = torch.cat([z, self.norm_text(text)], dim=1)  # (B, p + n, d)
        q = self._split(self.query(z))
        k, v = self._split(self.key(tokens)), self._split(self.value(tokens))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B, heads, p, d / heads)
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return cast(Tensor, x + self.dropout(self.ffn(self.norm_ffn(x))))

    def _split(self, t: Tensor) -> Tensor:
        return t.reshape(*t.shape[:2], self.heads, -1).transpose(1, 2)  # (B, heads, tokens, d / heads)


class WordShift(nn.Module):
    """The shift that words add to every position: the sum of the word vectors, scaled and projected.

    It is a sum because findings are evidence that adds up, as in a naive Bayes classifier. In a mean, one
    phrase alone would shift the maps as far as a full checklist.
    """

    scale: Tensor

    def __init__(self, text_channels: int, channels: list[int]) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(text_channels))
        # Without a bias, so that a search can weigh the words by scaling their vectors.
        self.project = nn.ModuleList(nn.Linear(text_channels, d, bias=False) for d in channels)
        for linear in self.project:  # so that words change nothing at the start of the training
            nn.init.zeros_(cast(nn.Linear, linear).weight)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """tokens (B, n, d_T), attention_mask (B, n) int64 -> a shift (B, d) of each level."""
        total = self._total(tokens, attention_mask) * self.scale
        return [project(total) for project in self.project]

    @torch.no_grad()
    def standardize(self, tokens: Tensor, attention_mask: Tensor) -> None:
        """Take the scale from the words of the training cases."""
        self.scale.copy_(1 / (self._total(tokens, attention_mask).std(0) + 1e-3))

    @staticmethod
    def _total(tokens: Tensor, attention_mask: Tensor) -> Tensor:  # (B, d_T)
        return (tokens * attention_mask.to(tokens.dtype)[..., None]).sum(1) / _USUAL_TOKENS


class Composer(nn.Module):
    """Change an image's maps by words: a cross-modal transformer, a shift, or both. Shapes stay the same."""

    def __init__(self, config: ModelConfig, channels: list[int], text_channels: int) -> None:
        super().__init__()
        attend = config.fusion != "additive"
        self.text = nn.ModuleList(nn.Linear(text_channels, d) for d in channels if attend)
        self.layers = nn.ModuleList(
            nn.ModuleList(CrossModalLayer(d, config) for _ in range(config.layers))
            for d in channels
            if attend
        )
        self.shift = WordShift(text_channels, channels) if config.fusion != "cross-attention" else None

    def forward(self, low: Tensor, mid: Tensor, high: Tensor, tokens: Tensor, attention_mask: Tensor) -> Maps:
        """Three maps (B, h, w, d), tokens (B, n, d_T), attention_mask (B, n) int64 -> three maps."""
        maps: Maps = (low, mid, high)
        if len(self.layers):
            maps = self._attend(maps, tokens, attention_mask)
        if self.shift is not None:
            shifts = self.shift(tokens, attention_mask)
            maps = cast(Maps, tuple(x + s[:, None, None, :] for x, s in zip(maps, shifts, strict=True)))
        return maps

    def _attend(self, maps: Maps, tokens: Tensor, attention_mask: Tensor) -> Maps:
        result = []
        for x, project, layers in zip(maps, self.text, self.layers, strict=True):
            _, h, w, _ = x.shape
            text = project(tokens)
            padding = (1 - attention_mask.to(x.dtype)) * -1e4  # no token attends to padding
            bias = F.pad(padding, (h * w, 0))[:, None, None, :]
            y = x.flatten(1, 2)  # (B, h w, d)
            for layer in cast(nn.ModuleList, layers):
                y = layer(y, text, bias)
            result.append(y.reshape(-1, h, w, y.shape[-1]))
        return cast(Maps, tuple(result))


class SimilarityHead(nn.Module):
    """Compute a descriptor from maps: six unit vectors (Eq. 6-8), and the concepts predicted from them.

    Queries and cases use the same head.
    """

    def __init__(self, config: ModelConfig, channels: list[int]) -> None:
        super().__init__()
        self.aggregation = config.aggregation
        self.masks = nn.ModuleList(nn.Linear(d, config.regions) for d in channels)
        local = [d * (config.regions if config.aggregation == "concat" else 1) for d in channels]
        self.layout = Layout(
            local=(local[0], local[1], local[2]),
            global_=(channels[0], channels[1], channels[2]),
            concepts=tuple(map(len, config.concepts.values())),
        )
        self.concepts = nn.ModuleList(nn.Linear(sum(channels), n) for n in self.layout.concepts)
        # Words say much of what the group depends on, so that the picture counts otherwise beside them.
        self.group_with_words = nn.ModuleList(nn.Linear(sum(channels), n) for n in self.layout.concepts[:1])
        for parameter in (*self.concepts.parameters(), *self.group_with_words.parameters()):
            nn.init.zeros_(parameter)

    def forward(
        self, low: Tensor, mid: Tensor, high: Tensor, words: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Three maps (B, h, w, d) -> descriptor (B, D), and the masks alpha of each level (B, k, h, w).

        words : the weight of a query's words (B,), from 0 to 1; None for pictures alone.
        """
        local, global_, masks = [], [], []
        for x, mask in zip((low, mid, high), self.masks, strict=True):
            _, h, w, _ = x.shape
            x = x.flatten(1, 2)  # (B, h w, d)
            alpha = mask(x).transpose(1, 2).softmax(-1)  # (B, k, h w), sums to one over space: no empty mask
            regions = alpha @ x  # (B, k, d): rho(X * alpha_j)
            local.append(unit(self._aggregate(regions)))  # e^i
            global_.append(unit(x.mean(1)))  # g^i
            masks.append(alpha.reshape(-1, alpha.shape[1], h, w))
        concepts = [logits.softmax(-1) for logits in self.concept_logits(low, mid, high, words)]  # p^c
        return torch.cat([*local, *global_, *concepts], dim=1), masks[0], masks[1], masks[2]

    def concept_logits(
        self, low: Tensor, mid: Tensor, high: Tensor, words: Tensor | None = None
    ) -> list[Tensor]:
        """Three maps (B, h, w, d), words as in `forward` -> the logits (B, values) of each concept.

        They are linear in the maps: the evidence of positions adds up, and so does that of words, which shift
        the maps. The unit vectors have lost how strong it is. The group has two heads, for pictures alone and
        beside words of weight 1; between them the logits are interpolated.
        """
        means = _CONCEPT_GAIN * torch.cat([x.mean((1, 2)) for x in (low, mid, high)], 1)
        logits = [concept(means) for concept in self.concepts]
        if words is not None:
            for n, head in enumerate(self.group_with_words):
                logits[n] = logits[n] + words[:, None] * (head(means) - logits[n])
        return logits

    def concept_heads(self) -> Tensor:
        """Return [W b] without words and with words of weight 1, with the gain in W.

        The shape is (2, values of all concepts, channels of the three maps + 1).
        """
        alone = cast(list[nn.Linear], [*self.concepts])
        beside = cast(list[nn.Linear], [*self.group_with_words, *alone[1:]])
        return torch.stack(
            [
                torch.cat([torch.cat([_CONCEPT_GAIN * t.weight, t.bias[:, None]], 1) for t in heads])
                for heads in (alone, beside)
            ]
        )

    def _aggregate(self, regions: Tensor) -> Tensor:  # (B, k, d) -> (B, d), or (B, k d) when concatenated
        match self.aggregation:
            case "normalized":  # all regions have equal weight
                return unit(regions).mean(1)
            case "max":
                return regions.amax(1)
            case "concat":
                return regions.flatten(1)
            case _:
                return regions.mean(1)


class Skinret(nn.Module):
    """The whole model, of four modules."""

    def __init__(
        self, config: ModelConfig, backbone: Backbone | None = None, encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.visual_encoder = VisualEncoder(config, backbone)
        self.text_encoder = TextEncoder(config, encoder)
        channels = [d for _, _, d in self.visual_encoder.shapes]
        self.composer = Composer(config, channels, self.text_encoder.channels)
        self.similarity_head = SimilarityHead(config, channels)

    def forward(
        self, pixels: Tensor, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Return the descriptor (B, D) of queries, or of cases if there are no ids."""
        maps = self.visual_encoder(pixels)
        words = None
        if input_ids is not None:
            maps = self.composer(*maps, self.text_encoder(input_ids, attention_mask), attention_mask)
            words = torch.ones(len(pixels), device=pixels.device)
        return cast(Tensor, self.similarity_head(*maps, words)[0])

    def compose(self, maps: Maps, tokens: Tensor, attention_mask: Tensor, alone: Tensor) -> Maps:
        """Change maps by words, except the rows of `alone` (B,) bool, whose query is the image alone."""
        composed = self.composer(*maps, tokens, attention_mask)
        skip = alone[:, None, None, None]
        mixed = (torch.where(skip, x, y.to(x.dtype)) for x, y in zip(maps, composed, strict=True))
        return cast(Maps, tuple(mixed))


def mean_token(tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean over the tokens that are no padding: (B, n, d_T), (B, n) -> (B, d_T)."""
    mask = attention_mask.to(tokens.dtype)[..., None]
    return (tokens * mask).sum(1) / mask.sum(1).clamp_min(1.0)


def _resize(x: Tensor, side: int) -> Tensor:
    """Resize maps (B, h, w, d) to another side by a whole factor: average cells, or repeat them."""
    current = x.shape[1]
    if current > side:
        return F.avg_pool2d(x.permute(0, 3, 1, 2), current // side).permute(0, 2, 3, 1)
    times = side // current
    return x if times == 1 else x.repeat_interleave(times, 1).repeat_interleave(times, 2)


def unit(x: Tensor) -> Tensor:
    """Scale the last axis to length one; a zero vector stays zero."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp_min(EPS)


# -- encoders by name or folder --


def build_text_encoder(text: Mapping[str, Any]) -> nn.Module:
    """Build a text encoder from its configuration, with random weights."""
    return _token_encoder(AutoModel.from_config(AutoConfig.for_model(**text), attn_implementation=ATTENTION))


def load_text_encoder(name: str) -> tuple[nn.Module, dict[str, Any], str]:
    """Load an encoder of the BERT family by hub name or folder.

    Returns the module, its configuration, and the text of tokenizer.json.
    """
    from transformers import AutoTokenizer

    config = read_config(name, "text")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **only_local(name)).backend_tokenizer.to_str()
        model = AutoModel.from_pretrained(
            name, config=config, dtype=torch.float32, attn_implementation=ATTENTION, **only_local(name)
        )
    except (OSError, ValueError, AttributeError) as error:
        raise load_error(name, "text encoder", error) from None
    return _token_encoder(model), plain_config(model.config), tokenizer


def _token_encoder(model: Any) -> nn.Module:
    """Drop the pooler, which the token vectors do not use."""
    if hasattr(model, "pooler"):
        model.pooler = None
    return cast(nn.Module, model.eval())


def load_pretrained(vision: str, text: str, **options: Any) -> tuple[Skinret, str]:
    """Build the model from a vision and a text model by name or folder.

    `options` are fields of ModelConfig. Returns the model and the text of tokenizer.json. Raises InputError
    for a model that cannot be loaded or does not fit.
    """
    backbone, recipe = load_backbone(vision, options.get("image_size", 224))
    encoder, text_config, tokenizer = load_text_encoder(text)
    config = ModelConfig(vision=backbone.config, text=text_config, **{**recipe, **options})
    return Skinret(config, backbone, encoder), tokenizer
