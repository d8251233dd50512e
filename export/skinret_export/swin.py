"""The form in which a Swin is exported: the same weights and outputs in fewer steps."""

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.swin.modeling_swin import SwinBackbone, SwinEmbeddings, SwinLayer, SwinPatchMerging

from skinret_training.backbones import Backbone
from skinret_training.model import VisualEncoder

_OFFSET = 128.0  # subtracted from pixels: the results are small, and exact in bfloat16


@torch.no_grad()
def export_form(visual_encoder: VisualEncoder, image_size: int) -> VisualEncoder:
    """Return the module to export in place of a visual encoder: the encoder itself if it has no faster form.

    Swin moves its tokens into windows and back around every attention, by rolls, reshapes and transposes.
    Between two attentions a token's position has no effect, so one permutation from window order to window
    order is enough. Only the output maps must have the order of the image. Everything that is the same for
    every image is computed once, here: the normalisation of pixels, the scale of the attention's queries, and
    the bias of each attention with the mask of its shifted windows.
    """
    if not _is_plain_swin(visual_encoder.backbone.model, image_size):
        return visual_encoder
    form = copy.deepcopy(visual_encoder).eval()
    windowed = _WindowedSwin(form.backbone.model, image_size, form.mean, form.std)
    form.backbone = cast(Backbone, windowed)
    form.mean, form.std = torch.tensor(_OFFSET), torch.tensor(1.0)
    return form


def _is_plain_swin(backbone: nn.Module, image_size: int) -> bool:
    """Return whether a backbone is a Swin without extras whose windows tile the maps of every stage."""
    if not isinstance(backbone, SwinBackbone):
        return False
    embeddings, config = backbone.swin.embeddings, backbone.config
    height, width = embeddings.patch_embeddings.projection.kernel_size
    window = height * config.window_size << (len(config.depths) - 1)  # of the last stage, side in pixels
    unusual = embeddings.position_embeddings is not None or "stem" in backbone.out_features
    return height == width and image_size % window == 0 and not unusual


class _WindowedSwin(nn.Module):
    """A Swin backbone whose tokens stay in window order; it reuses the modules of the original one."""

    def __init__(self, backbone: SwinBackbone, image_size: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.stages, self.maps = nn.ModuleDict(), nn.ModuleDict()
        patches, window = backbone.swin.embeddings, backbone.config.window_size
        side = image_size // patches.patch_embeddings.projection.kernel_size[0]
        order = _windows(side, window)  # the position in the map of each token
        steps: list[nn.Module] = [_Patches(patches, side, window, mean, std)]
        for name, stage in zip(backbone.stage_names[1:], backbone.swin.encoder.layers, strict=True):
            for block in stage.blocks:
                new = _windows(side, window, block.shift_size)
                steps.append(_Block(block, side, order.argsort()[new]))
                order = new
            self.stages[name] = nn.Sequential(*steps)
            if name in backbone.out_features:
                self.maps[name] = _Map(backbone.hidden_states_norms[name], side, order.argsort())
            if stage.downsample is not None:
                side //= 2
                new = _windows(side, window)
                steps = [_Merge(stage.downsample, order.argsort()[_fours(side)[new].flatten()])]
                order = new

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, S, S), less the offset -> maps (B, d, h, w) of the output stages."""
        x, maps = pixels, []
        for name, stage in self.stages.items():
            x = stage(x)
            if name in self.maps:
                maps.append(self.maps[name](x))
        return tuple(maps)


class _Patches(nn.Module):
    """Compute Swin's first tokens from pixels by one matrix product, in window order."""

    weight: Tensor
    bias: Tensor

    def __init__(self, embeddings: SwinEmbeddings, side: int, window: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        projection, self.norm = embeddings.patch_embeddings.projection, embeddings.norm
        patch = projection.kernel_size[0]
        self.grid = (side // window, window, patch, side // window, window, 3 * patch)
        weight = projection.weight.permute(0, 2, 3, 1) / std  # (d, patch, patch, 3)
        bias = projection.bias - (weight * (mean - _OFFSET)).sum((1, 2, 3))
        self.register_buffer("weight", weight.flatten(1), persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, h w, d)."""
        x = pixels.permute(0, 2, 3, 1).reshape(-1, *self.grid).permute(0, 1, 4, 2, 5, 3, 6)
        tokens: Tensor = self.norm(F.linear(x.flatten(5).flatten(1, 4), self.weight, self.bias))
        return tokens


class _Block(nn.Module):
    """A Swin layer that gets tokens in the previous window order and returns them in its own."""

    bias: Tensor

    def __init__(self, block: SwinLayer, side: int, order: Tensor) -> None:
        super().__init__()
        self.block, self.order = block, _Order(order)
        for parameter in block.attention.q_proj.parameters():
            parameter.mul_(block.attention.scaling)
        bias = block.attention.relative_position_bias()  # (1, heads, n, n), for the n tokens of a window
        mask = block.get_attn_mask(side, side, bias.dtype, bias.device)  # (windows, n, n) if shifted
        self.register_buffer("bias", bias if mask is None else bias + mask[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h w, d) -> (B, h w, d)."""
        x = self.order(x)
        x = x + self._attend(self.block.layernorm_before(x))
        x = x + self.block.mlp(self.block.layernorm_after(x))
        return x

    def _attend(self, x: Tensor) -> Tensor:
        attention, (_, heads, n, _) = self.block.attention, self.bias.shape
        windows = x.reshape(-1, n, x.shape[-1])
        q, k, v = (
            project(windows).reshape(-1, n, heads, attention.head_dim).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        scores = q @ k.transpose(-1, -2)  # (B windows, heads, n, n)
        if len(self.bias) == 1:
            scores = scores + self.bias
        else:
            scores = (scores.reshape(-1, *self.bias.shape) + self.bias).flatten(0, 1)
        attended = (scores.softmax(-1) @ v).transpose(1, 2)
        out: Tensor = attention.o_proj(attended.reshape(x.shape))
        return out


class _Merge(nn.Module):
    """Swin's patch merging, four tokens to one, which also puts the tokens into the next window order."""

    def __init__(self, downsample: SwinPatchMerging, order: Tensor) -> None:
        super().__init__()
        self.downsample, self.order = downsample, _Order(order)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h w, d) -> (B, h w / 4, 2 d)."""
        x = self.order(x)
        fours = x.reshape(-1, x.shape[1] // 4, 4 * x.shape[2])
        merged: Tensor = self.downsample.reduction(self.downsample.norm(fours))
        return merged


class _Map(nn.Module):
    """Normalise tokens and arrange them as a map."""

    def __init__(self, norm: nn.Module, side: int, order: Tensor) -> None:
        super().__init__()
        self.norm, self.side, self.order = norm, side, _Order(order)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h w, d) -> (B, d, h, w)."""
        x = self.norm(self.order(x))
        return x.reshape(-1, self.side, self.side, x.shape[-1]).permute(0, 3, 1, 2)


class _Order(nn.Module):
    """Permute tokens (B, n, d) by an order (n,), unless it changes nothing."""

    order: Tensor | None

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        moves = not torch.equal(order, torch.arange(len(order)))
        self.register_buffer("order", order if moves else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.order is None else x.index_select(1, self.order)


def _windows(side: int, window: int, shift: int = 0) -> Tensor:
    """Return the position in the map of each token, in the order of the shifted windows: (h w,)."""
    position = torch.arange(side * side).reshape(side, side).roll((-shift, -shift), (0, 1))
    return position.reshape(side // window, window, side // window, window).transpose(1, 2).flatten()


def _fours(side: int) -> Tensor:
    """Return the four positions of the previous map that each position of the merged map has: (h w, 4)."""
    position = torch.arange(4 * side * side).reshape(side, 2, side, 2)
    return position.permute(0, 2, 3, 1).reshape(-1, 4)  # down, then across, as Swin takes them
