"""The form in which a graph is exported: the same weights and numbers in fewer steps."""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.models.swin.modeling_swin import SwinEncoder, SwinLayer, SwinStage

from skinret_training.model import VisualEncoder


def export_form(visual_encoder: VisualEncoder, image_size: int) -> nn.Module:
    """Return what to export in a visual encoder's place; itself if its backbone has no better form.

    Swin moves its tokens into windows and back around every attention, by rolls, reshapes and transposes.
    What is done to a token between two attentions does not depend on where it lies, so in a stage one
    permutation from window to window is enough.
    """
    encoder = getattr(getattr(visual_encoder.backbone, "swin", None), "encoder", None)
    if not isinstance(encoder, SwinEncoder):
        return visual_encoder
    side, window = image_size // encoder.config.patch_size, encoder.config.window_size
    sides = [side >> stage for stage in range(len(encoder.layers))]
    if any(s % window for s in sides) or side % (1 << (len(sides) - 1)):
        return visual_encoder  # maps that windows do not tile are padded on the way
    form = copy.deepcopy(visual_encoder).eval()
    layers = cast(Any, form.backbone).swin.encoder.layers
    for index, side in enumerate(sides):
        layers[index] = _WindowOrder(layers[index], side)
    return form


class _WindowOrder(nn.Module):
    """A Swin stage whose tokens stay in the order of the windows."""

    def __init__(self, stage: SwinStage, side: int) -> None:
        super().__init__()
        self.blocks, self.downsample = stage.blocks, stage.downsample
        here = torch.arange(side * side)
        for index, block in enumerate(stage.blocks):
            there = _windows(block, side)
            self._keep(f"order_{index}", here.argsort()[there])
            mask = block.get_attn_mask(side, side, torch.float32, here.device)
            self.register_buffer(f"mask_{index}", mask, persistent=False)
            here = there
        self._keep("order_last", here.argsort())

    def forward(self, hidden_states: Tensor, input_dimensions: tuple[int, int], **_: Any) -> tuple[Any, ...]:
        """(B, h w, d) -> the next stage's input and this one's map, as SwinStage gives them."""
        height, width = input_dimensions
        x = hidden_states
        tokens, d = x.shape[1:]
        for index, block in enumerate(self.blocks):
            x = self._reorder(x, f"order_{index}")
            windows = block.layernorm_before(x).reshape(-1, block.window_size**2, d)
            attended, _weights = block.attention(windows, getattr(self, f"mask_{index}"))
            x = x + attended.reshape(-1, tokens, d)
            x = x + block.mlp(block.layernorm_after(x))
        x = self._reorder(x, "order_last")
        below = x if self.downsample is None else self.downsample(x, input_dimensions)
        return below, x.reshape(-1, height, width, d).permute(0, 3, 1, 2), None

    def _keep(self, name: str, order: Tensor) -> None:
        moves = not torch.equal(order, torch.arange(len(order)))
        self.register_buffer(name, order if moves else None, persistent=False)

    def _reorder(self, x: Tensor, name: str) -> Tensor:
        order = getattr(self, name)
        return x if order is None else x.index_select(1, order)


def _windows(block: SwinLayer, side: int) -> Tensor:
    """Return which position of the map each token of a block's shifted windows comes from."""
    window, shift = block.window_size, block.shift_size
    position = torch.arange(side * side).reshape(side, side).roll((-shift, -shift), (0, 1))
    return position.reshape(side // window, window, side // window, window).transpose(1, 2).flatten()
