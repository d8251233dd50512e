"""The cases as arrays, their folds, and the outputs of the frozen encoders, which are computed once."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import StratifiedKFold, train_test_split
from tqdm.auto import tqdm

from skinret_infer._files import atomic_write
from skinret_infer.cases import Case
from skinret_infer.errors import InputError
from skinret_infer.evaluation.metrics import LESION
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import ImageRecipe, Pixels, pixel_sha256, preprocess
from skinret_infer.tables import CaseTable
from skinret_infer.text import TextEncoderInput, Tokens
from skinret_infer.words.checklist import ABSENT, PRESENT, Allowed, Checklist, Criterion

from .loss import UNKNOWN
from .model import Maps, Skinret, apply_dihedral

log = logging.getLogger(__name__)
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Dataset:
    """N cases, preprocessed as the bundle will preprocess them."""

    case_ids: list[str]
    groups: list[str]
    concepts: dict[str, list[str]]  # the values of each concept, the group first
    targets: Indices  # [N, C], the index of each concept's value; UNKNOWN if a case has none
    checklist: Checklist
    findings: list[dict[str, str]]  # the recorded values of each case by criterion
    pictures: list[str]  # SHA-256 of each decoded picture
    lesions: list[Indices]  # the cases of each lesion, which a split keeps together
    pixels: Pixels  # [N, S, S, 3]

    @property
    def labels(self) -> Indices:
        """The index of each case's group, [N]."""
        return self.targets[:, 0]

    @property
    def digest(self) -> str:
        """SHA-256 of the preprocessed pixels."""
        return hashlib.sha256(self.pixels.data).hexdigest()


@dataclass(frozen=True, slots=True)
class Split:
    """Case indices for training, for early stopping, and for the held-out test, which is read once."""

    train: Indices
    validation: Indices
    test: Indices

    @property
    def archive(self) -> Indices:
        """The training folds: all cases that are not held out."""
        return np.sort(np.concatenate([self.train, self.validation]))


def load_dataset(
    table: CaseTable, image: ImageRecipe, checklist: Checklist, *, quiet: bool = False
) -> Dataset:
    """Decode and preprocess every image. Raises InputError, with the case id, for an unusable one.

    Raises InputError for recorded values that the checklist does not have.
    """
    _check_values(table, checklist)
    pixels = np.empty((len(table.cases), image.size, image.size, 3), np.uint8)
    pictures = []
    for n, case in enumerate(
        tqdm(table.cases, "images", unit="image", disable=True if quiet else None, leave=False)
    ):
        try:
            pixels[n] = preprocess(picture := decode(case.image), image)
        except InputError as error:
            error.add_note(f"This is the image of case {case.case_id!r}.")
            raise
        pictures.append(pixel_sha256(picture))
    concepts, targets = _concepts(table, checklist)
    if "group" not in concepts:
        raise InputError(
            "the cases have fewer than two groups",
            code="data-groups",
            expected="cases of at least two groups",
            found=", ".join({case.group for case in table.cases}) or "none",
        )
    return Dataset(
        [case.case_id for case in table.cases],
        [case.group for case in table.cases],
        concepts,
        targets,
        checklist,
        [checklist.values_of(case.attributes) for case in table.cases],
        pictures,
        lesions_of(table.cases, pictures),
        pixels,
    )


def lesions_of(cases: Sequence[Case], pictures: Sequence[str], names: Sequence[str] = ()) -> list[Indices]:
    """Return the cases of each lesion: those with the same `lesion_id`, and those that show equal pictures.

    pictures : SHA-256 of each case's picture.
    names : of the table of each case, if they are of several: a `lesion_id` counts within its table.
    """
    first = dict[str, str]()  # of each picture, the name of the lesion under which it came first
    other_name = dict[str, str]()

    def lesion_of(name: str) -> str:
        while name in other_name:
            name = other_name[name]
        return name

    own_names = []
    for n, (case, sha256) in enumerate(zip(cases, pictures, strict=True)):
        lesion = case.attributes.get(LESION)
        own = f"lesion {lesion}" if lesion else f"case {case.case_id}"
        own_names.append(f"{names[n]} {own}" if names else own)
        one, two = lesion_of(first.setdefault(sha256, own_names[-1])), lesion_of(own_names[-1])
        if one != two:
            other_name[two] = one
    members = dict[str, list[int]]()
    for n, name in enumerate(own_names):
        members.setdefault(lesion_of(name), []).append(n)
    return [np.array(indices, np.int64) for indices in members.values()]


def _check_values(table: CaseTable, checklist: Checklist) -> None:
    """Raise InputError for recorded values that the checklist does not have."""
    cases: dict[str, list[str]] = {}
    for case in table.cases:
        for fault in checklist.check_values(case.attributes):
            cases.setdefault(fault, []).append(case.case_id)
    if cases:
        raise InputError(
            f"the cases have values that the checklist {checklist.name!r} does not have",
            code="checklist-value",
            expected="; ".join(f"{n}: {', '.join(c.values)}" for n, c in checklist.criteria.items())[:400],
            found="; ".join(
                f"{fault} ({len(ids)}, first case {ids[0]!r})" for fault, ids in list(cases.items())[:5]
            ),
            cure="correct the cases, or give a checklist that has the values with --checklist",
        )


def _concepts(table: CaseTable, checklist: Checklist) -> tuple[dict[str, list[str]], Indices]:
    """Return the values of the group and of each criterion that has more than one, and `Dataset.targets`."""
    columns = {"group": [case.group for case in table.cases]}
    columns |= {n: [str(case.attributes.get(n, "")) for case in table.cases] for n in checklist.from_image}
    concepts = {
        name: values for name, column in columns.items() if len(values := sorted(set(column) - {""})) > 1
    }
    targets = [[concepts[name].index(v) if v else UNKNOWN for v in columns[name]] for name in concepts]
    return concepts, np.array(targets, np.int64).T


def split(dataset: Dataset, *, folds: int, fold: int | None, validation: float, seed: int) -> Split:
    """Split by group: hold out one of `folds` (none if `fold` is None), then the share `validation`.

    All cases of a lesion are in one part.
    """
    lesions, labels = dataset.lesions, _groups_of_lesions(dataset)
    everything = np.arange(len(lesions))
    rest, test = everything, everything[:0]
    try:
        if fold is not None:
            groups = [dataset.groups[cases[0]] for cases in lesions]
            counts = zip(*np.unique(groups, return_counts=True), strict=True)
            if scarce := [f"{n} of {group}" for group, n in counts if n < folds]:
                raise ValueError(", ".join(scarce))
            splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(everything, labels)
            rest, test = list(splits)[fold]
        train, stopping = rest, rest[:0]
        if validation:
            train, stopping = train_test_split(
                rest, test_size=validation, stratify=labels[rest], random_state=seed
            )
    except ValueError as error:
        raise InputError(
            "the cases cannot be split",
            code="data-split",
            expected=f"enough lesions of each group for {folds} folds and a validation part",
            found=str(error),
            cure="give more cases, or fewer folds",
        ) from None
    return Split(*(_cases_of(dataset, part) for part in (train, stopping, test)))


def hold_out(dataset: Dataset, case_split: Split, share: float, seed: int) -> Split:
    """Return a split whose test is a share of another one's training cases, by group and lesion."""
    trained = set(case_split.train.tolist())
    train = np.array([n for n, cases in enumerate(dataset.lesions) if int(cases[0]) in trained])
    try:
        rest, test = train_test_split(
            train, test_size=share, stratify=_groups_of_lesions(dataset)[train], random_state=seed
        )
    except ValueError as error:
        raise InputError(
            "the cases cannot be split for the calibration",
            code="data-split",
            expected="enough lesions of each group",
            found=str(error),
            cure="give more cases, or --calibration 0, which sets no limits of first hits",
        ) from None
    return Split(_cases_of(dataset, rest), case_split.validation, _cases_of(dataset, test))


def _groups_of_lesions(dataset: Dataset) -> Indices:
    """Return the label of each lesion, that of its first case."""
    return dataset.labels[[cases[0] for cases in dataset.lesions]]


def _cases_of(dataset: Dataset, lesions: Indices) -> Indices:
    """Return the cases of some lesions, in order."""
    none = np.empty(0, np.int64)
    return np.sort(np.concatenate([none, *(dataset.lesions[n] for n in lesions)]))


# How a wording speaks of a case, with the weight of each way. See docs/explain/recipe.md.
WAYS = {
    "all": 2.0,
    "part": 2.0,
    "present": 3.0,  # only what is present, as most reports are written
    "part of present": 1.0,
    "vague": 1.0,  # "irregular pigmentation", "not regular streaks"
    "presence": 1.0,  # "pigment network, absent streaks"
    "presence of present": 1.5,  # "pigment network, dots and globules"
}
Stated = dict[str, Allowed]  # the allowed values of each criterion that a wording speaks of


def text_views(
    findings: Mapping[str, str], checklist: Checklist, views: int, rng: np.random.Generator
) -> list[str]:
    """Return several wordings of a case in canonical words: first all its findings, then some way of WAYS."""
    everything: Stated = {name: (value,) for name, value in findings.items()}
    weights = np.array(list(WAYS.values()))
    texts = [checklist.text(everything)]
    for way in rng.choice(list(WAYS), views - 1, p=weights / weights.sum()):
        texts.append(checklist.text(_speak(everything, checklist, str(way), rng)) or texts[0])
    return texts


def _speak(everything: Stated, checklist: Checklist, way: str, rng: np.random.Generator) -> Stated:
    match way:
        case "all":
            return everything
        case "part":
            return _part(everything, 0.3, rng)
        case "present":
            return _present(_with_some_facts(everything, checklist, rng))
        case "part of present":
            return _part(_present(everything), 0.2, rng)
        case "vague":
            share = float(rng.choice([0.5, 0.7, 1.0]))
            stated = _part(everything, 0.3, rng) if share == 0.7 else everything
            return {
                name: _vague(checklist.criteria[name], values[0], rng) if rng.random() < share else values
                for name, values in stated.items()
            }
    stated = _with_some_facts(everything, checklist, rng)
    if rng.random() < 0.5:
        stated = _part(stated, 0.2, rng)
    stated = _present(stated) if way == "presence of present" else stated
    return {
        name: values if values == (ABSENT,) else _presence(checklist.criteria[name], values)
        for name, values in stated.items()
    }


def _part(stated: Stated, low: float, rng: np.random.Generator) -> Stated:
    """Return some of the criteria, on average a share of them from `low` to 1; all, if none was drawn."""
    share = rng.uniform(low, 1.0)
    return {name: values for name, values in stated.items() if rng.random() < share} or stated


def _present(stated: Stated) -> Stated:
    return {name: values for name, values in stated.items() if values != (ABSENT,)}


def _with_some_facts(stated: Stated, checklist: Checklist, rng: np.random.Generator) -> Stated:
    """Leave out none, some or all of what no picture shows, such as the location."""
    share = float(rng.choice([0.0, 0.5, 1.0]))
    return {n: v for n, v in stated.items() if checklist.criteria[n].from_image or rng.random() < share}


def _presence(criterion: Criterion, values: Allowed) -> Allowed:
    return criterion.allowed(PRESENT) if ABSENT in criterion.values else values


def _vague(criterion: Criterion, value: str, rng: np.random.Generator) -> Allowed:
    """Return a set of values that a less exact statement about this value would allow."""
    others = [other for other in criterion.values if other not in (value, ABSENT)]
    if ABSENT not in criterion.values or not others:
        return (value,)
    draw = rng.random()
    groups = [group for group in criterion.groups.values() if value in group]
    if value == ABSENT and draw < 0.7:
        return (value,)
    if value != ABSENT and groups and draw < 0.5:
        return groups[rng.integers(len(groups))]
    if value != ABSENT and draw < 0.8:
        return criterion.allowed(PRESENT)
    allowed = criterion.without([str(rng.choice(others))])
    return allowed if value in allowed else (value,)  # a part of "combinations" denies it too


class FrozenMaps:
    """The maps of a frozen backbone for every case and symmetry, float16, in memory-mapped files.

    last : also store the state before the backbone's last stage, so that this stage can be trained.

    A file's name depends on everything that its content depends on, so that another run of the same data
    finds it.
    """

    def __init__(
        self,
        model: Skinret,
        dataset: Dataset,
        augment_dihedral: int,
        cache: Path,
        *,
        last: bool = False,
        quiet: bool = False,
    ) -> None:
        facts = (model.config.max_map_size, model.config.mean, model.config.std, dataset.digest)
        key = encoder_key(model.visual_encoder.backbone.model, repr(facts).encode())
        self._views = [
            self._load(model, dataset, view, cache, key, last, quiet) for view in range(augment_dihedral)
        ]

    def get(self, indices: Indices, views: Indices) -> Maps:
        """Return float32 maps (B, h, w, d) of cases, each in its view."""
        low, mid, high = (self._gather(n, indices, views) for n in range(3))
        return low, mid, high

    def last(self, indices: Indices, views: Indices) -> torch.Tensor:
        """Return the state before the backbone's last stage, float32 (B, ...)."""
        return self._gather(3, indices, views)

    def _gather(self, array: int, indices: Indices, views: Indices) -> torch.Tensor:
        x = np.empty((len(indices), *self._views[0][array].shape[1:]), np.float32)
        for view in np.unique(views):
            x[views == view] = self._views[view][array][indices[views == view]]
        return torch.from_numpy(x)

    @staticmethod
    def _load(
        model: Skinret, dataset: Dataset, view: int, cache: Path, key: str, last: bool, quiet: bool
    ) -> list[npt.NDArray[np.float16]]:
        names = ["low", "mid", "high"] + (["state"] if last else [])
        paths = [cache / f"maps-{key}-{view}-{name}.npy" for name in names]
        if not all(path.is_file() for path in paths):
            device = next(model.parameters()).device
            encoder = model.visual_encoder
            arrays: list[list[npt.NDArray[np.float16]]] = [[] for _ in names]
            for batch in batches(len(dataset.pixels), 16, f"frozen maps, view {view}", quiet):
                pixels = apply_dihedral(torch.from_numpy(dataset.pixels[batch]), view).to(device)
                with torch.inference_mode():
                    outputs = encoder.maps_and_state(pixels) if last else encoder.backbone_maps(pixels)
                    for rows, x in zip(arrays, outputs, strict=True):
                        rows.append(x.half().cpu().numpy())
            for path, rows in zip(paths, arrays, strict=True):
                with atomic_write(path) as temporary, temporary.open("wb") as file:
                    np.save(file, np.concatenate(rows))
        return [np.load(path, mmap_mode="r") for path in paths]


class CaseTexts:
    """The words of every case in several views: token ids and, for a frozen encoder, token vectors.

    The vectors are stored like `FrozenMaps`, so that other folds of the same seed find them.
    """

    def __init__(
        self,
        model: Skinret,
        dataset: Dataset,
        tokenize: TextEncoderInput,
        views: int,
        seed: int,
        *,
        frozen: bool,
        cache: Path,
        quiet: bool = False,
    ) -> None:
        self.views = views
        rng = np.random.default_rng(seed)
        texts = [
            text
            for findings in dataset.findings
            for text in text_views(findings, dataset.checklist, views, rng)
        ]
        self.ids: Tokens
        self.mask: Tokens
        self.ids, self.mask, _ = tokenize(texts)
        self.blank = np.array([not findings for findings in dataset.findings])  # [N], cases without words
        self._tokens: npt.NDArray[np.float16] | None = None
        if frozen:
            key = encoder_key(model.text_encoder, self.ids.tobytes() + self.mask.tobytes())
            path = cache / f"words-{key}.npy"
            if not path.is_file():
                with atomic_write(path) as temporary, temporary.open("wb") as file:
                    np.save(file, self._encode(model, quiet))
            self._tokens = np.load(path, mmap_mode="r")

    def _encode(self, model: Skinret, quiet: bool) -> npt.NDArray[np.float16]:
        device = next(model.parameters()).device
        lengths = self.mask.sum(1)
        tokens = np.zeros((*self.ids.shape, model.text_encoder.channels), np.float16)
        by_length = np.argsort(lengths, kind="stable")  # texts of equal length together need less padding
        for batch in batches(len(lengths), 64, "frozen words", quiet):
            rows = by_length[batch]
            n = int(lengths[rows].max())
            with torch.inference_mode():
                ids, mask = (torch.from_numpy(a[rows, :n]).to(device) for a in (self.ids, self.mask))
                tokens[rows, :n] = model.text_encoder(ids, mask).half().cpu().numpy()
        return tokens

    def get(self, model: Skinret, indices: Indices, views: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (B, n, d_T) and their mask (B, n) on the model's device."""
        rows = indices * self.views + views
        n = int(self.mask[rows].sum(1).max())  # the longest text of the batch
        device = next(model.parameters()).device
        mask = torch.from_numpy(self.mask[rows, :n]).to(device)
        if self._tokens is not None:
            return torch.from_numpy(self._tokens[rows, :n]).to(device).float(), mask
        return model.text_encoder(torch.from_numpy(self.ids[rows, :n]).to(device), mask), mask


def encoder_key(encoder: torch.nn.Module, facts: bytes) -> str:
    """Return the name of what an encoder makes of something: 16 digits of a hash of weights and `facts`."""
    key = hashlib.sha256(facts)
    for name, tensor in sorted(encoder.state_dict().items()):
        key.update(name.encode() + tensor.cpu().numpy().tobytes())
    return key.hexdigest()[:16]


def batches(count: int, size: int, label: str, quiet: bool) -> Iterator[slice]:
    """Yield slices of `size` that cover `count`, with a progress bar on a terminal."""
    bar = tqdm(total=count, desc=label, unit="", disable=True if quiet else None, leave=False)
    with bar:
        for start in range(0, count, size):
            yield slice(start, start + size)
            bar.update(min(size, count - start))


ImageMaps = Callable[[Indices, Indices], Maps]


def image_maps(model: Skinret, dataset: Dataset, frozen: FrozenMaps | None, tuned: bool = False) -> ImageMaps:
    """Return the function from case indices and views to projected maps, from cached maps or from pixels.

    tuned : the backbone's last stage is trained; it computes the high map from the cached state.
    """
    device = next(model.parameters()).device

    def from_cache(indices: Indices, views: Indices) -> Maps:
        assert frozen is not None
        low, mid, high = (x.to(device) for x in frozen.get(indices, views))
        if tuned:
            high = model.visual_encoder.last_map(frozen.last(indices, views).to(device))
        return model.visual_encoder.project((low, mid, high))

    def from_pixels(indices: Indices, views: Indices) -> Maps:
        pixels = torch.from_numpy(dataset.pixels[indices])
        batch = torch.stack([apply_dihedral(p[None], int(v))[0] for p, v in zip(pixels, views, strict=True)])
        maps: Maps = model.visual_encoder(batch.to(device))
        return maps

    return from_cache if frozen else from_pixels
