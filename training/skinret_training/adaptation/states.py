"""Views of lesions, and what the frozen blocks make of them, which is computed once."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from skinret_infer._files import atomic_write, sync
from skinret_infer.engines.cpus import available_cpus
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import ImageRecipe, Pixels, preprocess

from ..backbones import State
from ..data import Indices, batches
from .augment import augment
from .pile import Pile

_CHUNK = 32  # pictures at once
_NOTE = 512  # pictures between two notes of how many are done; a multiple of _CHUNK
PLAIN = -1  # the view without augmentation


def picture_of(pile: Pile, lesion: int, view: int, seed: int) -> int:
    """Return the picture that a lesion shows in a view; consecutive views show all its pictures in turn."""
    pictures = pile.lesions[lesion]
    if view == PLAIN:
        return int(pictures[0])
    order = np.random.default_rng([seed, lesion]).permutation(pictures)
    return int(order[view % len(order)])


def render(pile: Pile, lesion: int, view: int, recipe: ImageRecipe, seed: int) -> Pixels:
    """Return a view of a lesion, S x S x 3 uint8. Seed, lesion and view fix its augmentation."""
    pixels = decode(pile.cases[picture_of(pile, lesion, view, seed)].image)
    if view == PLAIN:
        return preprocess(pixels, recipe)
    return augment(pixels, recipe, np.random.default_rng([seed, lesion, view]))


def rendered(
    pile: Pile, wanted: Sequence[tuple[Indices, Sequence[int]]], recipe: ImageRecipe, seed: int
) -> Iterator[Pixels]:
    """Yield the pixels (B, S, S, 3) of batches that are not kept, in order, from one process a CPU.

    wanted : the lesions of each batch, and its views; all lesions in one view come first.
    """
    batches = [[(int(lesion), view) for view in views for lesion in lesions] for lesions, views in wanted]
    views = _Views(pile, recipe, seed)
    return iter(DataLoader(views, batch_sampler=batches, num_workers=available_cpus(), collate_fn=np.stack))


@dataclass(frozen=True, slots=True)
class _Views(Dataset[Pixels]):
    pile: Pile
    recipe: ImageRecipe
    seed: int

    def __getitem__(self, wanted: tuple[int, int]) -> Pixels:
        return render(self.pile, *wanted, self.recipe, self.seed)


class States:
    """The states of some lesions in any view, float16, in memory-mapped files that a killed run continues.

    lesions : [L], the rows of the files.
    render : the function from lesion and view to S x S x 3 uint8.
    encode : the function from pixels (B, S, S, 3) to their state.
    key : what the states depend on, beside lesions and view.
    """

    def __init__(
        self,
        lesions: Indices,
        render: Callable[[int, int], Pixels],
        encode: Callable[[Pixels], State],
        cache: Path,
        key: str,
        *,
        quiet: bool = False,
    ) -> None:
        self.lesions, self._render, self._encode, self._quiet = lesions, render, encode, quiet
        self._stem = cache / f"states-{hashlib.sha256(key.encode() + lesions.tobytes()).hexdigest()[:16]}"
        self._views: dict[int, list[npt.NDArray[np.float16]]] = {}
        self._row = {int(lesion): row for row, lesion in enumerate(lesions)}

    def get(self, lesions: Indices, view: int) -> State:
        """Return the float32 state of lesions in a view, which is computed now if no file has it."""
        if view not in self._views:
            self._views[view] = self._load(view)
        rows = [self._row[int(lesion)] for lesion in lesions]
        return tuple(torch.from_numpy(array[rows].astype(np.float32)) for array in self._views[view])

    def _load(self, view: int) -> list[npt.NDArray[np.float16]]:
        """Open the files of a view, and complete them from where their note says that a run came to."""
        name = f"{self._stem.name}-{'plain' if view == PLAIN else view}"
        note = self._stem.with_name(f"{name}.json")
        paths = sorted(self._stem.parent.glob(f"{name}-?.npy"))
        done = json.loads(note.read_text("utf-8"))["done"] if paths and note.is_file() else 0
        arrays: list[npt.NDArray[np.float16]] = []
        if done:
            arrays = [np.lib.format.open_memmap(path, "r+") for path in paths]
        for part in batches(len(self.lesions), _CHUNK, f"frozen blocks, view {view}", self._quiet):
            if part.start < done:
                continue
            state = self._encode(np.stack([self._render(int(n), view) for n in self.lesions[part]]))
            if not arrays:
                arrays, paths = self._create(name, state)
            for array, x in zip(arrays, state, strict=True):
                array[part] = x.half().cpu().numpy()
            if part.stop >= len(self.lesions) or part.stop % _NOTE == 0:
                for array, path in zip(arrays, paths, strict=True):
                    cast(np.memmap[Any, Any], array).flush()
                    sync(path)
                with atomic_write(note) as temporary:
                    temporary.write_text(json.dumps({"done": part.stop}), "utf-8")
        return arrays

    def _create(self, name: str, state: State) -> tuple[list[npt.NDArray[np.float16]], list[Path]]:
        self._stem.parent.mkdir(parents=True, exist_ok=True)
        paths = [self._stem.with_name(f"{name}-{n}.npy") for n in range(len(state))]
        arrays: list[npt.NDArray[np.float16]] = [
            np.lib.format.open_memmap(path, "w+", np.float16, (len(self.lesions), *x.shape[1:]))
            for path, x in zip(paths, state, strict=True)
        ]
        return arrays, paths
