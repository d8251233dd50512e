"""The baseline: a query and indexing in plain PyTorch, with the same weights, images and words."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skinret_infer.bundle import GRAPHS
from skinret_infer.descriptor import weigh
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import preprocess
from skinret_infer.text import TextEncoderInput
from skinret_training.checkpoint import Checkpoint
from skinret_training.model import Skinret

Array = np.ndarray
Modules = Mapping[str, Any]  # the four modules of the model, by the name of their graph


class PyTorch:
    """A model in PyTorch; the search is one numpy product with a matrix.

    bf16 : run under autocast.
    """

    def __init__(
        self, checkpoint: Checkpoint, modules: Modules, matrix: Array, layout: Any, bf16: bool = False
    ) -> None:
        self._modules, self._matrix, self._layout, self._bf16 = modules, matrix, layout, bf16
        config, self._image = checkpoint.config, checkpoint.image
        self._weights = config.beta, config.gamma, config.group_weight
        self._tokenize = TextEncoderInput(checkpoint.tokenizer, checkpoint.text)

    def run(self, graph: str, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run one module on arrays by name and return its first outputs under the names in `outputs`."""
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            out = self._modules[graph](**{name: torch.from_numpy(a) for name, a in feeds.items()})
        tensors = out if isinstance(out, tuple) else (out,)
        return {name: tensor.float().numpy() for name, tensor in zip(outputs, tensors, strict=False)}

    def embed(self, images: Sequence[Any], texts: Sequence[str] = ()) -> Array:
        """Return descriptors [B, D]: with texts of queries, without texts of cases."""
        pixels = torch.from_numpy(np.stack([preprocess(decode(image), self._image) for image in images]))
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            maps, words = self._modules["visual_encoder"](pixels), None
            if texts:
                ids, mask, _ = self._tokenize(texts)
                n = int(mask.sum(axis=1).max())  # the longest text
                ids, mask = torch.from_numpy(ids[:, :n]), torch.from_numpy(mask[:, :n])
                maps = self._modules["composer"](*maps, self._modules["text_encoder"](ids, mask), mask)
                words = torch.ones(len(images))
            return self._modules["similarity_head"](*maps, words)[0].float().numpy()

    def query(self, image: Any, text: str, k: int = 10) -> Array:
        """Return the positions of the k best cases, best first."""
        scores = self._matrix @ weigh(self.embed([image], [text])[0], self._layout, *self._weights)
        best = np.argpartition(-scores, k)[:k]
        return best[np.argsort(-scores[best])]


def load(checkpoint: Path, matrix: Path) -> PyTorch:
    """Load everything from files, as a service does at its start."""
    loaded = Checkpoint.load(checkpoint)
    model = loaded.model()
    return PyTorch(loaded, modules_of(model, "sdpa"), np.load(matrix), model.similarity_head.layout)


def load_modules(checkpoint: Path, matrix: Array) -> dict[str, PyTorch]:
    """Return the variants of PyTorch, by label, on one set of weights."""
    loaded = Checkpoint.load(checkpoint)
    model = loaded.model()
    layout = model.similarity_head.layout
    eager, fused = modules_of(model, "eager"), modules_of(model, "sdpa")
    compiled = {name: torch.compile(module) for name, module in modules_of(model, "sdpa").items()}
    return {
        "PyTorch eager": PyTorch(loaded, eager, matrix, layout),
        "PyTorch sdpa": PyTorch(loaded, fused, matrix, layout),
        "torch.compile": PyTorch(loaded, compiled, matrix, layout),
        "PyTorch bf16": PyTorch(loaded, fused, matrix, layout, bf16=True),
    }


def modules_of(model: Skinret, attention: str) -> Modules:
    """Return the four modules with one of transformers' attentions; they share the weights of `model`."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, shared).eval()
    for encoder in (model.visual_encoder.backbone.model, model.text_encoder.encoder):
        encoder.set_attn_implementation(attention)
    return {name: getattr(model, name) for name in GRAPHS}
