"""Adaptation of a vision backbone: its last blocks are tuned on labelled and unlabelled dermoscopy."""

import copy
import hashlib
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from skinret_infer._files import atomic_folder, atomic_write
from skinret_infer.engines.cpus import available_cpus
from skinret_infer.errors import InputError
from skinret_infer.imaging.recipe import ImageRecipe, Pixels
from skinret_infer.tables import CaseTable

from ..backbones import Backbone, State, load_backbone
from ..data import Indices
from ..loss import UNKNOWN, balancing_weights
from ..model import ModelConfig
from ..origin import PICTURES, RECORD, read_adaptation
from .heads import Heads, pooled
from .pile import Pile, read_pile
from .states import PLAIN, States, picture_of, render, rendered

log = logging.getLogger(__name__)
PREPROCESSOR = "preprocessor_config.json"
_WARM_UP = 0.05  # of all steps
_LOG = 50  # steps between two lines of the log
_SAVE = 60.0  # seconds between two states of a run within a pass, at least
_MOMENTUM = 0.996  # of the slow copy, a step
_PROGRESS = ("step", "losses", "seconds", "history")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptConfig:
    """Options of an adaptation. The defaults suit a plain ViT of twelve layers on two cores."""

    vision: str = "facebook/dinov2-small"
    image_size: int = 224
    fit: str = "crop"
    blocks: int | None = None  # how many of the last blocks are tuned; None: half of them
    findings: tuple[str, ...] | None = None  # labels beside the group; None: the criteria that are columns
    passes: int = 4
    views: int = 2  # of a lesion that are kept; a pass takes one of them. 0: new ones in every pass, not kept
    # A pass takes all lesions of the second most common group, and of the most common one, which has r times
    # as many, r ** balance as many. 1 takes all of them, 0 the same number of both.
    balance: float = 0.5
    patches: float = 1.0  # the share of a plain ViT's patches that a step draws and sees; less is faster
    batch: int = 32  # lesions in a step
    lr: float = 1e-4  # of the last block
    decay: float = 0.8  # of the learning rate, from each block to the one before it
    head_lr: float = 1e-3  # of the heads, which start from nothing
    weight_decay: float = 0.05  # of matrices
    smoothing: float = 0.1  # of labels
    findings_weight: float = 1.0  # of the findings' cross-entropy, beside the group's
    contrastive_weight: float = 0.0  # of the contrastive loss, where views of a lesion are positives
    self_distillation: float = 0.0  # weight of the agreement with a slow copy, which needs no labels
    teacher: str = ""  # a larger backbone whose features are imitated, which needs no labels
    distillation: float = 1.0  # weight of that imitation
    validation: float = 0.1  # the share of lesions that is measured after each pass; it chooses nothing
    seed: int = 0
    bf16: bool = True

    @property
    def pairs(self) -> bool:
        """Whether a step shows two views of each lesion."""
        return bool(self.contrastive_weight or self.self_distillation)

    @property
    def needs_labels(self) -> bool:
        """Whether a picture without a label teaches nothing."""
        return not (self.pairs or self.teacher)

    @property
    def different(self) -> int:
        """How many passes differ in the views that they show."""
        return self.views or self.passes


def adapt(
    tables: Sequence[CaseTable],
    config: AdaptConfig,
    out: Path,
    *,
    exclude: Mapping[str, CaseTable] | None = None,
    drop_duplicates: bool = False,
    cache: Path,
    quiet: bool = False,
    stop: Callable[[int], bool] | None = None,
) -> dict[str, Any]:
    """Tune the last blocks of a backbone, write it as a folder, and return its report, adaptation.json.

    out : the folder, a transformers model. It is written after every pass. A killed run continues from the
        state beside it (OUT.resume), with the same result.
    exclude : the tables of the evaluation by name, none of whose pictures may be among those of `tables`.
    cache : the folder of what the frozen blocks make of each view that is kept.
    stop : called after each step with the number of steps; True ends the run there, as a kill would.

    Raises InputError for data or options that cannot be used.
    """
    torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))  # PyTorch ignores CPU quotas
    check_out(out)
    pile = read_pile(
        tables,
        exclude,
        findings=config.findings,
        validation=config.validation,
        seed=config.seed,
        drop_duplicates=drop_duplicates,
        quiet=quiet,
    )
    if config.needs_labels and not any(pile.concepts.values()):
        raise InputError(
            "no picture has a label",
            code="data-groups",
            expected="a group, a diagnosis or a finding for some pictures, or a loss without labels",
            found=f"{len(pile.cases)} pictures without",
            cure="add labels, or give --teacher or --self-distillation 1",
        )
    run = _Run(pile, config, out, cache, quiet)
    run.all_passes(stop)
    return run.report()


def check_out(out: Path) -> None:
    """Raise InputError if `out` exists and is no adapted backbone, which may be replaced."""
    if out.exists() and not (out / RECORD).is_file():
        raise InputError(
            f"{out} exists and was not written by skinret-adapt",
            code="exists",
            expected=f"a new folder, or one with {RECORD}",
            cure="name another folder",
        )


def _first_tuned(backbone: Backbone, config: AdaptConfig) -> int:
    """Return how many blocks stay as they are. Raises InputError for a backbone that cannot be adapted."""
    if not hasattr(backbone.model, "save_pretrained"):
        raise InputError(
            f"{config.vision} cannot be adapted",
            code="option",
            expected="a backbone of transformers, which can be written as a folder",
            found=type(backbone.model).__name__,
        )
    count = len(backbone.blocks)
    tuned = count - count // 2 if config.blocks is None else config.blocks
    if not 1 <= tuned <= count:
        raise InputError(
            "the number of tuned blocks cannot be used",
            code="option",
            expected=f"1 to {count}, the blocks of this backbone",
            found=str(tuned),
        )
    return count - tuned


class _Run:
    """The passes. Seed and step fix every random choice, so that a resumed run gives the same."""

    def __init__(self, pile: Pile, config: AdaptConfig, out: Path, cache: Path, quiet: bool) -> None:
        self.pile, self.config, self.out, self.quiet = pile, config, out, quiet
        self.resume = out.with_name(out.name + ".resume")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.recipe = ImageRecipe(size=config.image_size, fit=config.fit)
        backbone, image = load_backbone(config.vision, config.image_size)
        self.first = _first_tuned(backbone, config)
        if getattr(backbone.model, "_supports_sdpa", False):  # faster; what is exported is eager
            backbone.model.set_attn_implementation("sdpa")
        defaults = ModelConfig(vision={}, text={})
        self.mean, self.std = image.get("mean", defaults.mean), image.get("std", defaults.std)
        self.backbone = backbone.to(self.device).eval().requires_grad_(False)
        self.tuned = self.backbone.blocks[self.first :]
        for block in self.tuned:
            block.requires_grad_(True)
        self.identity: dict[str, Any] = {
            "config": asdict(config) | {"vision": _digest(backbone)},
            "data": pile.digest,
        }
        self.train, self.validation = self._select()
        self.seen = self._seen()
        self.drawn = [self._draw(view) for view in range(config.different)]
        self.states = [self._states_of(lesions, cache) for lesions in self.drawn] if config.views else []
        self.plain = self._states_of(self.validation, cache)
        self.teacher: Callable[[Pixels], State] | None = None
        self.wanted: list[States] = []  # the teacher's features, one for each stored view
        self.teacher_channels = 0
        if config.teacher:
            self._load_teacher(cache)
        self.fresh: Iterator[Pixels] | None = None  # the views of each step from here on, if none is kept
        self.heads = self._build_heads().to(self.device)
        self.slow = copy.deepcopy(self.backbone).requires_grad_(False) if config.self_distillation else None
        self.optimizer = self._build_optimizer()
        self.steps = max(1, len(self.drawn[0]) // config.batch)  # of a pass; none has a single lesion
        self.step = 0  # of the run
        self.losses: list[float] = []  # of the current pass
        self.seconds = 0.0
        self.saved = time.monotonic()
        self.history: list[dict[str, float]] = []

    def _select(self) -> tuple[Indices, Indices]:
        """Return the lesions to train with, which have a label or need none, and those to measure with."""
        lesions, parts = self.pile.lesions, np.array(self.pile.parts)
        labelled = np.array([(self.pile.targets[pictures] != UNKNOWN).any() for pictures in lesions])
        train = np.flatnonzero((parts == "train") & (labelled | (not self.config.needs_labels)))
        if len(train) < 2:
            raise InputError(
                "there are too few lesions to adapt a backbone",
                code="data-split",
                expected="at least two lesions with labels that are not for validation",
                found=str(len(train)),
            )
        return train, np.flatnonzero(parts == "validation")

    def _draw(self, view: int) -> Indices:
        """Return the lesions of a view; see `AdaptConfig.balance`."""
        labels = self.pile.targets[[self.pile.lesions[n][0] for n in self.train], 0]
        groups, counts = np.unique(labels, return_counts=True)
        base = np.sort(counts)[-2:][0]
        rng = np.random.default_rng([self.config.seed, view])
        drawn = []
        for group, count in zip(groups, counts, strict=True):
            wanted = min(count, round(base * (count / base) ** self.config.balance))
            drawn.append(rng.permutation(self.train[labels == group])[:wanted])
        return rng.permutation(np.concatenate(drawn))

    def _states_of(self, lesions: Indices, cache: Path) -> States:
        facts = (self.identity["config"]["vision"], self.pile.digest, self.recipe, self.mean, self.std)
        key = repr((*facts, self.first, self.config.seed, self.config.bf16))
        return States(lesions, self._render, self._encode, cache, key, quiet=self.quiet)

    def _render(self, lesion: int, view: int) -> Pixels:
        return render(self.pile, lesion, view, self.recipe, self.config.seed)

    @torch.no_grad()
    def _encode(self, pixels: Pixels) -> State:
        """Pixels (B, S, S, 3) -> the state before the tuned blocks."""
        x = self._normalized(pixels, self.mean, self.std)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            return self.backbone.prefix(x, self.first)

    def _normalized(self, pixels: Pixels, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Pixels (B, S, S, 3) -> (B, 3, S, S)."""
        mean_, std_ = (255 * torch.tensor(v, device=self.device) for v in (mean, std))
        return ((torch.from_numpy(pixels).to(self.device).float() - mean_) / std_).permute(0, 3, 1, 2)

    def _load_teacher(self, cache: Path) -> None:
        """Prepare what the teacher makes of each view. It is computed once, like the states."""
        teacher, image = load_backbone(self.config.teacher, self.config.image_size)
        teacher = teacher.to(self.device).eval().requires_grad_(False)
        self.identity["config"]["teacher"] = _digest(teacher)
        mean, std = (image.get(name, getattr(self, name)) for name in ("mean", "std"))

        @torch.no_grad()
        def encode(pixels: Pixels) -> State:
            x = self._normalized(pixels, mean, std)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
                return (pooled(teacher(x)),)

        facts = (self.identity["config"]["teacher"], self.pile.digest, self.recipe, mean, std)
        key = repr((*facts, self.config.seed, self.config.bf16))
        self.teacher = encode
        if self.config.views:
            self.wanted = [
                States(lesions, self._render, encode, cache, key, quiet=self.quiet) for lesions in self.drawn
            ]
        blank = np.zeros((1, self.recipe.size, self.recipe.size, 3), np.uint8)
        self.teacher_channels = encode(blank)[0].shape[1]

    def _build_heads(self) -> Heads:
        size = self.config.image_size
        with torch.no_grad():
            maps = self.backbone(torch.zeros(1, 3, size, size, device=self.device))
        pictures = np.concatenate([self.pile.lesions[n] for n in self.train])
        targets = torch.from_numpy(self.pile.targets[pictures])
        weights = {
            name: balancing_weights(column, len(values), 0.5).to(self.device)
            for (name, values), column in zip(self.pile.concepts.items(), targets.T, strict=True)
        }
        weights["group"] = torch.ones_like(weights["group"])  # is balanced by `_draw`
        torch.manual_seed(self.config.seed)
        return Heads(pooled(maps).shape[1], self.pile.concepts, weights, self.teacher_channels)

    def _build_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        rates: list[tuple[nn.Module, float]] = [
            (block, config.lr * config.decay**n) for n, block in enumerate(reversed(self.tuned))
        ]
        rates.append((self.heads, config.head_lr))
        return torch.optim.AdamW(
            [
                {"params": parameters, "peak": rate, "weight_decay": decay}
                for module, rate in rates
                for matrices, decay in ((True, config.weight_decay), (False, 0.0))
                if (parameters := [p for p in module.parameters() if (p.dim() > 1) == matrices])
            ]
        )

    def all_passes(self, stop: Callable[[int], bool] | None) -> None:
        """Run all steps that are left, and remove the state of the run."""
        if self.resume.is_file():
            self._restore()
        total = self.config.passes * self.steps
        bar = tqdm(total=total, initial=self.step, unit="step", disable=True if self.quiet else None)
        with bar:
            while self.step < total:
                start = time.perf_counter()
                self.losses.append(self._one_step(total))
                self.step += 1
                self.seconds += time.perf_counter() - start
                bar.update()
                if self.step % self.steps == 0:
                    self._end_pass()
                elif self.step % _LOG == 0:
                    loss, minutes = np.mean(self.losses[-_LOG:]), self.seconds / 60
                    log.info("step %d of %d: loss %.3f, %.1f minutes", self.step, total, loss, minutes)
                    if time.monotonic() - self.saved >= _SAVE:
                        self._save()
                if stop and stop(self.step):
                    return
        self.resume.unlink(missing_ok=True)

    def _one_step(self, total: int) -> float:
        config = self.config
        lesions, renders = self._batch(self.step)
        pictures = [picture_of(self.pile, int(lesion), n, config.seed) for n in renders for lesion in lesions]
        state, wanted = self._shown(lesions, renders)
        targets = self.pile.targets[pictures]
        loss = self._loss(self._thin(state), np.tile(lesions, len(renders)), targets, wanted)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * _rate_factor(self.step / total)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.slow:
            with torch.no_grad():
                pairs = zip(self.slow.parameters(), self.backbone.parameters(), strict=True)
                for slow, fast in pairs:
                    slow.lerp_(fast, 1 - _MOMENTUM)
        return float(loss.detach())

    def _batch(self, step: int) -> tuple[Indices, tuple[int, ...]]:
        """Return the lesions of a step and the renders that it shows of each."""
        turn, part = divmod(step, self.steps)
        view = turn % self.config.different
        order = np.random.default_rng([self.config.seed, 1, turn]).permutation(self.drawn[view])
        renders = (2 * view, 2 * view + 1) if self.config.pairs else (view,)
        return np.array_split(order, self.steps)[part], renders

    def _shown(self, lesions: Indices, renders: tuple[int, ...]) -> tuple[State, Tensor | None]:
        """Return the state of each render of each lesion, and the teacher's features (B, d')."""
        if self.config.views:
            view = self.step // self.steps % self.config.views
            states = [self.states[view].get(lesions, n) for n in renders]
            state = tuple(torch.cat(parts).to(self.device) for parts in zip(*states, strict=True))
            wanted = [self.wanted[view].get(lesions, n)[0] for n in renders] if self.wanted else None
            return state, None if wanted is None else torch.cat(wanted).to(self.device)
        if self.fresh is None:
            steps = range(self.step, self.config.passes * self.steps)
            batches = [self._batch(step) for step in steps]
            self.fresh = rendered(self.pile, batches, self.recipe, self.config.seed)
        pixels = next(self.fresh)
        return self._encode(pixels), self.teacher(pixels)[0].float() if self.teacher else None

    def _thin(self, state: State) -> State:
        """Draw a part of a plain ViT's patches. The mean over them does not depend on their order."""
        if self.backbone.special is None or self.config.patches == 1:
            return state
        tokens = state[0].shape[1]
        patches = tokens - self.backbone.special
        wanted = max(1, math.isqrt(round(self.config.patches * patches))) ** 2  # of a square, as maps are
        rng = np.random.default_rng([self.config.seed, 2, self.step])
        drawn = tokens - patches + np.sort(rng.choice(patches, wanted, replace=False))
        rows = torch.from_numpy(np.concatenate([np.arange(tokens - patches), drawn])).to(self.device)
        return tuple(x.index_select(1, rows) for x in state)

    def _features(self, backbone: Backbone, state: State) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            maps = backbone.rest(state, self.first)
        return pooled(maps)

    def _loss(self, state: State, lesions: Indices, targets: Indices, wanted: Tensor | None) -> Tensor:
        """Return the loss of a step; `wanted` are the teacher's features (B, d')."""
        config, heads = self.config, self.heads.train()
        features = heads.standardise(self._features(self.backbone, state))
        losses = heads.label_losses(features, torch.from_numpy(targets).to(self.device), config.smoothing)
        loss: Tensor = losses.pop("group", features.sum() * 0)
        if losses:
            loss = loss + config.findings_weight * torch.stack(list(losses.values())).mean()
        if config.contrastive_weight:
            same = torch.from_numpy(lesions).to(self.device)
            loss = loss + config.contrastive_weight * heads.contrastive_loss(features, same)
        if self.slow:
            with torch.no_grad():
                other_view = self._features(self.slow, state).roll(len(state[0]) // 2, 0)
            loss = loss + config.self_distillation * heads.agreement_loss(features, other_view)
        if wanted is not None:
            loss = loss + config.distillation * heads.imitation_loss(features, wanted)
        return loss

    def _end_pass(self) -> None:
        start = time.perf_counter()
        figures = {"loss": round(float(np.mean(self.losses)), 4), **self._validate()}
        self.seconds += time.perf_counter() - start
        self.history.append({**figures, "minutes": round(self.seconds / 60, 1)})
        log.info(
            "pass %d: %s", len(self.history), ", ".join(f"{k} {v:.4g}" for k, v in self.history[-1].items())
        )
        self.losses = []
        self._write()
        self._save()

    @torch.inference_mode()
    def _validate(self) -> dict[str, float]:
        """Return accuracy and balanced accuracy of the group on the validation part, in percent."""
        self.heads.eval()
        labels = self.pile.targets[[self.pile.lesions[n][0] for n in self.validation], 0]
        lesions, labels = self.validation[labels != UNKNOWN], labels[labels != UNKNOWN]
        if not len(lesions):
            return {}
        best = []
        for batch in np.array_split(lesions, -(-len(lesions) // self.config.batch)):
            state = tuple(x.to(self.device) for x in self.plain.get(batch, PLAIN))
            features = self.heads.standardise(self._features(self.backbone, state))
            best.append(self.heads.labels["group"](features).argmax(1).cpu().numpy())
        hit = np.concatenate(best) == labels
        by_group = [hit[labels == group].mean() for group in np.unique(labels)]
        figures = {"accuracy": hit.mean(), "balanced_accuracy": np.mean(by_group)}
        return {name: round(100 * float(figure), 2) for name, figure in figures.items()}

    def _write(self) -> None:
        """Write the backbone as it is after a pass."""
        size = self.config.image_size
        processor = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": size, "width": size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        with atomic_folder(self.out) as folder:
            self.backbone.model.save_pretrained(folder)
            for name, facts in ((PREPROCESSOR, processor), (RECORD, self.report())):
                (folder / name).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
            (folder / PICTURES).write_text("\n".join(sorted(self.seen)) + "\n", "ascii")

    def _seen(self) -> set[str]:
        """Return the SHA-256 of each picture that this run, or an adaptation before it, has learned from."""
        before = map(read_adaptation, filter(None, (self.config.vision, self.config.teacher)))
        return set(self.pile.sha256).union(*(adaptation.seen for adaptation in before if adaptation))

    def report(self) -> dict[str, Any]:
        options = asdict(self.config)
        options |= {name: Path(options[name]).name for name in ("vision", "teacher")}
        options |= {"blocks": len(self.tuned)}
        packages = ("torch", "transformers", "numpy", "pillow", "skinret-infer")
        return {
            "passes": len(self.history),
            "history": self.history,
            "options": options,
            "backbone_sha256": self.identity["config"]["vision"],
            "data": {
                "sha256": self.pile.digest,
                **self.pile.counts(),
                "lesions_in_a_pass": len(self.drawn[0]),
            },
            "excluded": {Path(name).name: count for name, count in self.pile.excluded.items()},
            "duplicates": [{**found, "of": Path(found["of"]).name} for found in self.pile.duplicates],
            "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        }

    def _save(self) -> None:
        tuned = {k: p.detach() for k, p in self.backbone.named_parameters() if p.requires_grad}
        state = {
            "identity": self.identity,
            **{name: getattr(self, name) for name in _PROGRESS},
            "backbone": tuned,
            "heads": self.heads.state_dict(),
            "slow": self.slow.state_dict() if self.slow else {},
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_write(self.resume) as temporary:
            torch.save(state, temporary)
        self.saved = time.monotonic()

    def _restore(self) -> None:
        try:
            state = torch.load(self.resume, map_location="cpu", weights_only=True)
            self._check_identity(state["identity"])
            self.backbone.load_state_dict(state["backbone"], strict=False)
            self.heads.load_state_dict(state["heads"])
            if self.slow:
                self.slow.load_state_dict(state["slow"])
            self.optimizer.load_state_dict(state["optimizer"])
            for name in _PROGRESS:
                setattr(self, name, state[name])
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, EOFError, UnpicklingError) as error:
            raise InputError(
                f"{self.resume} cannot be read",
                code="resume",
                found=str(error),
                cure="delete it to start again",
            ) from None
        log.info("resumed after step %d of %d", self.step, self.config.passes * self.steps)

    def _check_identity(self, theirs: dict[str, Any]) -> None:
        if theirs != self.identity:
            ours = self.identity["config"]
            different = [k for k, v in ours.items() if theirs["config"].get(k) != v] or ["data"]
            raise InputError(
                f"{self.resume} belongs to another run",
                code="resume",
                expected="the same pictures and options",
                found=f"another {', '.join(different)}",
                cure="give the same options to continue, or delete the file to start again",
            )


def _rate_factor(progress: float) -> float:
    """Return the factor of the learning rates: a short warm-up, then half a cosine."""
    return min(1.0, (progress + 1e-3) / _WARM_UP) * (1 + math.cos(math.pi * progress)) / 2


def _digest(module: nn.Module) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        sha.update(name.encode() + tensor.cpu().numpy().tobytes())
    return sha.hexdigest()
