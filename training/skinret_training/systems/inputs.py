"""What the compared systems compute from: features of frozen encoders, words, maps and pixels."""

import copy
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from skinret_infer._files import atomic_write
from skinret_infer.imaging.recipe import Pixels
from skinret_infer.tables import CaseTable
from skinret_infer.text import TextEncoderInput, TextRecipe
from skinret_infer.words.checklist import Checklist

from ..data import CaseTexts, Dataset, FrozenMaps, Indices
from ..model import Maps, VisualEncoder, load_pretrained, mean_token
from ..train import TrainConfig

Array = npt.NDArray[np.float32]
_CPU = torch.device("cpu")
Getter = Callable[[Indices, Indices], Sequence[Tensor]]  # of cases, each in its view


@dataclass(frozen=True, slots=True)
class LastStage:
    """The last stage of the frozen backbone, to be trained.

    state : returns what the stage takes, of cases each in its view.
    copy : returns a copy of the stage with gradients, from the state to the last map (B, h, w, d).
    """

    state: Callable[[Indices, Indices], Tensor]
    copy: Callable[[], nn.Module]


class _Stage(nn.Module):
    def __init__(self, encoder: VisualEncoder) -> None:
        super().__init__()
        self._encoder = [encoder]  # not a submodule: only its last stage is trained
        self.blocks = nn.ModuleList(encoder.last_stage()).requires_grad_(True)

    def forward(self, state: Tensor) -> Tensor:
        return self._encoder[0].last_map(state)


@dataclass(frozen=True, slots=True)
class Inputs:
    """N cases, for all folds and seeds.

    labels : [N], the index of the group.
    targets : [N, C], as `Dataset.targets`.
    images : [V, N, d], the mean over positions of the maps of three levels, in each symmetry.
    channels : of the three levels; they add up to d.
    words : [N, W], see one_hot.
    tokens : [N, d_T], the mean token vector of a case's words; zero if it has no words.
    text : returns the token vectors (B, n, d_T) of the words of cases, and the mask of the tokens (B, n), on
        the device.
    maps : returns the maps of cases, each in its view, on the device.
    last_stage : prepares the last stage, on the device; it is computed only for a system that trains it.
    pixels : [N, S, S, 3].
    cache : the folder of what is computed once.
    device : where a system trains on maps. What needs pooled features alone stays on the CPU.
    """

    labels: Indices
    targets: Indices
    images: Array
    channels: tuple[int, int, int]
    words: Array
    tokens: Array
    text: Callable[[Indices], tuple[Tensor, Tensor]]
    maps: Callable[[Indices, Indices], Maps]
    last_stage: Callable[[], LastStage]
    pixels: Pixels
    cache: Path
    device: torch.device = _CPU

    def stored(self, name: str, compute: Callable[[], Sequence[Array]]) -> list[Array]:
        """Return arrays that depend on the pixels and maps alone, from the cache if it has them."""
        first = self.images[:, :1].tobytes()  # of the backbone
        key = hashlib.sha256(self.pixels.tobytes() + first).hexdigest()[:16]
        path = self.cache / f"{name}-{key}.npz"
        if not path.is_file():
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.savez(file, *compute())
        with np.load(path) as arrays:
            return list(arrays.values())

    @property
    def last(self) -> slice:
        """The columns of `images` that come from the last level."""
        return slice(-self.channels[2], None)

    def standardised(self, archive: Indices, columns: slice = slice(None)) -> Array:
        """Return the images with zero mean and unit variance over the cases of the training folds."""
        images = self.images[..., columns]
        training = images[:, archive]
        scaled: Array = (images - training.mean((0, 1))) / (training.std((0, 1)) + np.float32(1e-6))
        return scaled

    def averaged(self, archive: Indices) -> Array:
        """Return the mean over the symmetries [N, d], standardised over the cases of the training folds."""
        one_view = replace(self, images=self.images.mean(0, keepdims=True))
        mean: Array = one_view.standardised(archive)[0]
        return mean

    def standardised_maps(
        self, archive: Indices, pooled: Callable[[Maps], Maps] = lambda maps: maps
    ) -> Callable[[Indices, Indices], Maps]:
        """Return `maps` after `pooled`, with zero mean and unit variance of each channel over the archive."""
        sums, squares = ([torch.zeros(d, dtype=torch.float64) for d in self.channels] for _ in range(2))
        count = [0, 0, 0]
        for batch in in_batches(archive, 32):
            for n, x in enumerate(pooled(self.maps(batch, np.zeros(len(batch), np.int64)))):
                flat = x.flatten(0, 2).double()
                sums[n] += flat.sum(0).cpu()
                squares[n] += flat.square().sum(0).cpu()
                count[n] += len(flat)
        moments = []
        for s, q, c in zip(sums, squares, count, strict=True):
            variance = (q / c - (s / c).square()).clamp_min(1e-6)
            moments.append([x.float().to(self.device) for x in (s / c, variance.sqrt())])

        def standardised(cases: Indices, views: Indices) -> Maps:
            scaled = zip(pooled(self.maps(cases, views)), moments, strict=True)
            low, mid, high = ((x - mean) / deviation for x, (mean, deviation) in scaled)
            return low, mid, high

        return standardised


def compute_inputs(
    table: CaseTable, dataset: Dataset, config: TrainConfig, cache: Path, *, quiet: bool = False
) -> Inputs:
    """Compute the features of all cases, or take the maps from the cache."""
    model, tokenizer = load_pretrained(
        config.vision, config.text, image_size=config.image_size, max_map_size=config.max_map_size, width=1
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    frozen = FrozenMaps(model, dataset, config.augment_dihedral, cache, quiet=quiet)
    recipe = TextRecipe(length=config.tokens)
    tokenize = TextEncoderInput(tokenizer, recipe)
    texts = CaseTexts(model, dataset, tokenize, 1, 0, frozen=True, cache=cache, quiet=quiet)

    @functools.cache
    def last_stage() -> LastStage:
        states = FrozenMaps(model, dataset, config.augment_dihedral, cache, last=True, quiet=quiet)
        return LastStage(
            lambda cases, views: states.last(cases, views).to(device),
            lambda: _Stage(copy.deepcopy(model.visual_encoder)),
        )

    everything = np.arange(len(dataset.labels))
    batches = in_batches(everything, 64)

    def image_features(batch: Indices, view: int) -> Tensor:
        return torch.cat([x.mean((1, 2)) for x in frozen.get(batch, np.full(len(batch), view))], 1)

    def maps(batch: Indices, views: Indices) -> Maps:
        low, mid, high = (x.to(device) for x in frozen.get(batch, views))
        return low, mid, high

    def text(batch: Indices) -> tuple[Tensor, Tensor]:
        return texts.get(model, batch, np.zeros(len(batch), np.int64))

    def text_features(batch: Indices) -> Tensor:
        return mean_token(*text(batch)).cpu() * torch.from_numpy(~texts.blank[batch])[:, None]

    views = range(config.augment_dihedral)
    with torch.inference_mode():
        images = torch.stack(
            [torch.cat([image_features(batch, view) for batch in batches]) for view in views]
        )
        tokens = torch.cat([text_features(batch) for batch in batches])
        low, mid, high = (x.shape[-1] for x in frozen.get(everything[:1], everything[:1] * 0))
    return Inputs(
        dataset.labels,
        dataset.targets,
        images.numpy(),
        (low, mid, high),
        one_hot(table, dataset.checklist),
        tokens.numpy(),
        text,
        maps,
        last_stage,
        dataset.pixels,
        cache,
        device,
    )


def in_batches(cases: Indices, size: int) -> list[Indices]:
    """Return the cases in batches of one length, `size` or a little more."""
    return np.array_split(cases, max(1, len(cases) // size))


def one_hot(table: CaseTable, checklist: Checklist) -> Array:
    """Return [N, W]: 1 if case n has value w of a criterion of the checklist."""
    facts = [set(checklist.values_of(case.attributes).items()) for case in table.cases]
    columns = sorted(set().union(*facts))
    return np.array([[column in of_case for column in columns] for of_case in facts], np.float32)


def join(inputs: Inputs, others: Inputs, labels: Indices, table: CaseTable, checklist: Checklist) -> Inputs:
    """Return the inputs of two sets of cases as one set.

    labels : of the others, as the first set counts the groups.
    table : all cases, in the order of the two sets.
    """
    first = len(inputs.labels)

    def joined(one: Getter, two: Getter, cases: Indices, views: Indices) -> list[Tensor]:
        is_other = cases >= first
        parts = one(cases[~is_other], views[~is_other]), two(cases[is_other] - first, views[is_other])
        places = np.concatenate([np.flatnonzero(~is_other), np.flatnonzero(is_other)])
        order = torch.from_numpy(np.argsort(places))
        return [torch.cat(levels)[order] for levels in zip(*parts, strict=True)]

    def maps(cases: Indices, views: Indices) -> Maps:
        low, mid, high = joined(inputs.maps, others.maps, cases, views)
        return low, mid, high

    def text(cases: Indices) -> tuple[Tensor, Tensor]:
        tokens, mask = joined(lambda c, _: inputs.text(c), lambda c, _: others.text(c), cases, cases)
        return tokens, mask

    def last_stage() -> LastStage:
        one, two = inputs.last_stage(), others.last_stage()

        def state(cases: Indices, views: Indices) -> Tensor:
            return joined(lambda c, v: (one.state(c, v),), lambda c, v: (two.state(c, v),), cases, views)[0]

        return LastStage(state, one.copy)

    targets = np.full((len(others.labels), inputs.targets.shape[1]), -1)
    targets[:, 0] = labels
    return Inputs(
        np.concatenate([inputs.labels, labels]),
        np.concatenate([inputs.targets, targets]),
        np.concatenate([inputs.images, others.images], 1),
        inputs.channels,
        one_hot(table, checklist),
        np.concatenate([inputs.tokens, others.tokens]),
        text,
        maps,
        last_stage,
        np.concatenate([inputs.pixels, others.pixels]),
        inputs.cache,
        inputs.device,
    )
