"""The training loop: frozen or tuned encoders, early stopping on a validation part, resume after a kill."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from skinret_infer._files import atomic_write
from skinret_infer.descriptor import score_weights
from skinret_infer.engines.cpus import available_cpus
from skinret_infer.errors import InputError
from skinret_infer.evaluation.metrics import Labels, rank, retrieval_metrics
from skinret_infer.imaging.recipe import ImageRecipe
from skinret_infer.tables import CaseTable
from skinret_infer.text import TextEncoderInput, TextRecipe

from .checkpoint import Checkpoint
from .data import CaseTexts, Dataset, FrozenMaps, ImageMaps, Indices, Split, image_maps, load_dataset, split
from .loss import concept_loss, multi_positive_contrastive
from .model import SYMMETRIES, Skinret, check_choices, last_depth, load_pretrained

log = logging.getLogger(__name__)
SCHEDULES = ("cosine", "constant")
FINETUNE = ("none", "last-stage", "full")
_WARM_UP = 20  # steps


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The recipe. The defaults are what won on Derm7pt with frozen backbones; PAPER is the paper's."""

    vision: str = "microsoft/swin-tiny-patch4-window7-224"
    text: str = "google-bert/bert-base-uncased"
    finetune_vision: str = "none"  # "last-stage": between the mid and the high map; "full": all of it
    finetune_text: bool = False
    image_size: int = 224
    fit: str = "crop"
    tokens: int = 64
    tta: int = 1
    neck: str = "fused"
    width: int | None = 64  # of the maps; None keeps the backbone's own
    max_map_size: int = 8
    fusion: str = "additive"
    layers: int = 1  # of the cross-modal transformer, where words are attended to
    regions: int = 8
    aggregation: str = "normalized"
    beta: float = 0.6
    gamma: float = 0.7  # weight of the agreement of what is read, beside S / 3
    dropout: float = 0.3  # in the composer, and of the channels of a fused neck
    epochs: int = 60
    patience: int = 30
    batch: int = 64
    bf16: bool = False  # all but the similarity head in bfloat16: faster where the CPU or GPU has it
    lr: float = 2e-3
    encoder_lr: float = 1e-4  # of encoders that are tuned, without weight decay
    schedule: str = "cosine"
    weight_decay: float = 1.0
    temperature: float = 0.5  # of S/3 at the start; it is learned
    image_only_loss_weight: float = 0.5  # of the query by the image alone, beside that of image and words
    contrastive_weight: float = 3.0  # of the contrast of pairs, beside the concepts that are read
    group_loss_weight: float = 1.0  # of reading the group; 0: no concept is read, and the score is S / 3
    smoothing: float = 0.3  # of the groups that are read
    criteria_loss_weight: float = 0.5  # of reading the criteria
    text_views: int = 8  # ways to say a case
    augment_dihedral: int = 4  # of the square, as augmentation
    validation: float = 0.0  # part of the training data, to choose the epoch; 0: the last epoch of all
    folds: int = 5
    fold: int | None = None  # the held-out one; None trains on everything
    seed: int = 0
    name: str = "skinret"
    version: str = "0.1.0"

    def __post_init__(self) -> None:
        if self.augment_dihedral not in SYMMETRIES:
            raise InputError(
                "augment_dihedral cannot be used",
                code="option",
                expected="1, 2, 4 or 8",
                found=str(self.augment_dihedral),
            )
        check_choices(self, "the option", schedule=SCHEDULES, finetune_vision=FINETUNE)
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise InputError(
                "the held-out fold does not exist",
                code="option",
                expected=f"0 to {self.folds - 1}",
                found=str(self.fold),
            )


# What the paper states (Adam, 1e-4, 1e-5, 100 epochs, patience 30, beta 0.6, Eq. 7 as printed), and the plain
# choice for what it leaves open. AdamW stands for Adam: at this weight decay they are the same.
PAPER: dict[str, Any] = {
    "neck": "level",
    "width": 256,
    "fusion": "cross-attention",
    "aggregation": "mean",
    "epochs": 100,
    "lr": 1e-4,
    "schedule": "constant",
    "weight_decay": 1e-5,
    "temperature": 0.1,
    "dropout": 0.1,
    "contrastive_weight": 1.0,
    "image_only_loss_weight": 0.0,
    "group_loss_weight": 0.0,
    "validation": 0.15,
}


@dataclass(frozen=True, slots=True)
class Trained:
    """The checkpoint, which case ids the archive and the held-out queries are, and the epochs' figures."""

    checkpoint: Checkpoint
    archive_ids: list[str]
    query_ids: list[str]
    history: list[dict[str, float]]


def train(
    table: CaseTable,
    config: TrainConfig,
    *,
    cache: Path,
    dataset: Dataset | None = None,
    resume: Path | None = None,
    measure: bool = True,
    quiet: bool = False,
    stop: Callable[[int], bool] | None = None,
) -> Trained:
    """Train a model on the cases of a table.

    cache : the folder of the frozen maps, shared by runs.
    dataset : the table's images and words, if they are loaded; else they are.
    resume : where the state is written after each epoch; a killed run continues from it, to the same end.
    measure : whether the model queries with the held-out fold, once; not where the exported bundle will.
    stop : called after each epoch; True ends the training there, as a kill would.

    Raises InputError for data or options that cannot be used.
    """
    torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))  # it does not know of quotas
    image = ImageRecipe(size=config.image_size, fit=config.fit)
    text = TextRecipe(length=config.tokens)
    dataset = dataset or load_dataset(table, image, text, quiet=quiet)
    parts = split(
        dataset, folds=config.folds, fold=config.fold, validation=config.validation, seed=config.seed
    )
    torch.manual_seed(config.seed)
    model, tokenizer = _build(config, dataset)
    tokenize = TextEncoderInput(tokenizer, text)
    last = config.finetune_vision == "last-stage"
    frozen = None
    if config.finetune_vision != "full":
        frozen = FrozenMaps(model, dataset, config.augment_dihedral, cache, last=last, quiet=quiet)
    words = CaseTexts(
        model, dataset, tokenize, config.text_views, config.seed, frozen=not config.finetune_text, quiet=quiet
    )
    maps = image_maps(model, dataset, frozen, tuned=last)
    _begin(model, frozen, words, parts.train)
    loop = _Loop(model, dataset, words, maps, config, parts.train, parts.validation)
    began = time.perf_counter()
    loop.run(resume, quiet, stop)
    minutes = (time.perf_counter() - began) / 60
    model.load_state_dict(loop.best_state, strict=False)
    metrics: dict[str, Any] = {"epochs": len(loop.history), "minutes": round(minutes, 2)}
    if len(parts.validation):
        metrics["validation"] = loop.best
    if measure and len(parts.test):
        metrics["held_out"] = held_out_metrics(model, dataset, tokenize, parts.archive, parts.test)
        metrics["protocol"] = _protocol(config, parts)
    checkpoint = Checkpoint(
        config=model.config,
        image=image,
        text=text,
        tokenizer=tokenizer,
        state=model.state_dict(),
        name=config.name,
        version=config.version,
        origin=_origin(config, dataset),
        metrics=metrics,
    )
    ids = np.array(dataset.case_ids)
    return Trained(checkpoint, ids[parts.archive].tolist(), ids[parts.test].tolist(), loop.history)


def _build(config: TrainConfig, dataset: Dataset) -> tuple[Skinret, str]:
    """Return the model on its device, with what is trained marked, and the text of its tokenizer."""
    model, tokenizer = load_pretrained(
        config.vision,
        config.text,
        image_size=config.image_size,
        tta=config.tta,
        max_map_size=config.max_map_size,
        neck=config.neck,
        fusion=config.fusion,
        layers=config.layers,
        width=config.width,
        regions=config.regions,
        beta=config.beta,
        gamma=config.gamma if config.group_loss_weight else 0.0,
        concepts=dataset.concepts if config.group_loss_weight else {},
        aggregation=config.aggregation,
        dropout=config.dropout,
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.visual_encoder.backbone.requires_grad_(config.finetune_vision == "full")
    if config.finetune_vision == "last-stage":
        for block in last_depth(model.visual_encoder.backbone)[0]:
            block.requires_grad_(True)
    model.text_encoder.requires_grad_(config.finetune_text)
    return model, tokenizer


def _protocol(config: TrainConfig, parts: Split) -> str:
    """Say how the held-out figures were measured."""
    chosen = "all of them trained, to the last epoch"
    if len(parts.validation):
        chosen = f"epoch chosen on {len(parts.validation)} of those"
    return (
        f"fold {config.fold} of {config.folds} stratified folds (seed {config.seed}) held out: "
        f"{len(parts.test)} queries, archive of the other folds: {len(parts.archive)} cases; {chosen}"
    )


def _origin(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """Return what a manifest says of data and options; of paths only their names."""
    groups = ", ".join(f"{group} {dataset.groups.count(group)}" for group in sorted(set(dataset.groups)))
    options = asdict(config)
    options |= {name: Path(options[name]).name for name in ("vision", "text")}
    return {
        "data": f"{len(dataset.case_ids)} cases: {groups}",
        "data_sha256": dataset.digest,
        "training": options,
    }


@torch.no_grad()
def _begin(model: Skinret, frozen: FrozenMaps | None, words: CaseTexts, train: Indices) -> None:
    """Begin where the training cases' frozen features are centred and of one scale."""
    first = np.zeros(len(train), np.int64)
    if frozen is not None and model.visual_encoder.fused:
        model.visual_encoder.standardize(frozen.get(train, first))
    if model.composer.shift is not None:
        model.composer.shift.standardize(*words.get(model, train, first))


class _Loop:
    """The epochs. Each one's random choices follow from the seed and its number: resumed is the same."""

    def __init__(
        self,
        model: Skinret,
        dataset: Dataset,
        words: CaseTexts,
        maps: ImageMaps,
        config: TrainConfig,
        train: Indices,
        validation: Indices,
    ) -> None:
        self.model, self.dataset, self.words, self.maps, self.config = model, dataset, words, maps, config
        self.train, self.validation = train, validation
        self.device = next(model.parameters()).device
        self.log_scale = torch.nn.Parameter(torch.tensor(1 / config.temperature, device=self.device).log())
        layout = model.similarity_head.layout
        encoders = [*model.visual_encoder.backbone.parameters(), *model.text_encoder.parameters()]
        tuned = [p for p in encoders if p.requires_grad]
        known = {id(p) for p in encoders}
        new = [p for p in model.parameters() if id(p) not in known]
        new.append(self.log_scale)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": ps, "peak": peak, "weight_decay": decay}
                for ps, peak, decay in (
                    ([p for p in new if p.dim() > 1], config.lr, config.weight_decay),
                    ([p for p in new if p.dim() <= 1], config.lr, 0.0),
                    (tuned, config.encoder_lr, 0.0),
                )
                if ps
            ]
        )
        self.visual_length, self.weights = (  # of S / 3, and of the score
            torch.from_numpy(score_weights(layout, config.beta, gamma)).float().to(self.device)
            for gamma in (0.0, model.config.gamma)
        )
        free = ("patience",) if config.schedule == "cosine" else ("patience", "epochs")
        self.identity: dict[str, Any] = {  # of the run; once, for it hashes every pixel
            "config": {k: v for k, v in asdict(config).items() if k not in free},
            "data": dataset.digest,
        }
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}
        self.best_state: Mapping[str, torch.Tensor] = {}

    def run(self, resume: Path | None, quiet: bool, stop: Callable[[int], bool] | None) -> None:
        if resume and resume.is_file():
            self._restore(resume)
        bar = tqdm(
            total=self.config.epochs,
            initial=len(self.history),
            desc="epochs",
            unit="epoch",
            disable=True if quiet else None,
        )
        with bar:
            while len(self.history) < self.config.epochs and not self._out_of_patience():
                epoch = len(self.history)
                said = {"loss": self._epoch(epoch)}
                if len(self.validation):
                    figures = self._validate()
                    said |= {k: figures[k] for k in ("mAP", "Acc@1")}
                    if figures["mAP"] > self.best.get("mAP", -1.0):
                        self.best = {**figures, "epoch": epoch}
                        self.best_state = self._moving()
                self.history.append({"epoch": epoch, **said})
                log.info("epoch %d: %s", epoch, ", ".join(f"{k} {v:.4g}" for k, v in said.items()))
                bar.set_postfix({k: f"{v:.4g}" for k, v in said.items()})
                bar.update()
                if resume:
                    self._save(resume)
                if stop and stop(epoch):
                    break

    def _epoch(self, epoch: int) -> float:
        torch.manual_seed(self.config.seed * 100_003 + epoch)
        rng = np.random.default_rng([self.config.seed, epoch])
        self.model.train()
        self.model.visual_encoder.backbone.train(self.config.finetune_vision == "full")
        self.model.text_encoder.train(self.config.finetune_text)
        order = rng.permutation(self.train)
        losses = []
        steps = max(1, len(order) // self.config.batch)
        for step, batch in enumerate(np.array_split(order, steps)):
            turned = rng.integers(self.config.augment_dihedral, size=len(batch))
            views = rng.integers(self.words.views, size=len(batch))
            blank = torch.from_numpy(self.words.blank[batch]).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
                x = self.maps(batch, turned)
                tokens, mask = self.words.get(self.model, batch, views)
                asked = self.model.compose(x, tokens, mask, blank)
            d_q, d_t = (self.model.similarity_head(*(m.float() for m in maps))[0] for maps in (asked, x))
            loss = self._objective(d_q, d_t, batch)
            if self.config.image_only_loss_weight:
                loss = loss + self.config.image_only_loss_weight * self._objective(d_t, d_t, batch)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * self._pace(epoch + step / steps, steps)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            losses.append(float(loss.detach()))
        return float(np.mean(losses))

    def _objective(self, d_q: torch.Tensor, d_t: torch.Tensor, batch: Indices) -> torch.Tensor:
        """The loss of queries d_q (B, D) against the cases d_t (B, D) of a batch."""
        config = self.config
        targets = torch.from_numpy(self.dataset.targets[batch]).to(self.device)
        scores = (d_q * self.visual_length) @ d_t.T  # S / 3
        loss = multi_positive_contrastive(scores * self.log_scale.exp().clamp(max=100.0), targets[:, 0])
        loss = config.contrastive_weight * loss
        if logits := self.model.similarity_head.concept_logits(d_q):
            group_loss = concept_loss(logits[:1], targets[:, :1], config.smoothing)
            loss = loss + config.group_loss_weight * group_loss
            if logits[1:]:
                loss = loss + config.criteria_loss_weight * concept_loss(logits[1:], targets[:, 1:])
        return loss

    def _pace(self, epoch: float, steps: int) -> float:
        """The part of the learning rate at a moment: after a short warm-up, half a cosine or all of it."""
        warm = min(1.0, (epoch * steps + 1) / _WARM_UP)
        fall = (1 + math.cos(math.pi * epoch / self.config.epochs)) / 2
        return warm * (fall if self.config.schedule == "cosine" else 1.0)

    def _moving(self) -> dict[str, torch.Tensor]:
        """A copy of all that training changes."""
        still = {k for k, p in self.model.named_parameters() if not p.requires_grad}
        return {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items() if k not in still}

    @torch.inference_mode()
    def _validate(self) -> dict[str, Any]:
        """Query with the validation part, with all its words, against the training part."""
        self.model.eval()

        def described(indices: Indices, worded: bool) -> torch.Tensor:
            parts = []
            for batch in np.array_split(indices, max(1, len(indices) // 64)):
                first = np.zeros(len(batch), np.int64)
                x = self.maps(batch, first)
                if worded:
                    alone = torch.from_numpy(self.words.blank[batch]).to(self.device)
                    x = self.model.compose(x, *self.words.get(self.model, batch, first), alone)
                parts.append(self.model.similarity_head(*x)[0])
            return torch.cat(parts)

        archive = described(self.train, False)
        figures = _figures(
            self.dataset, described(self.validation, True), archive, self.validation, self.train, self.weights
        )
        by_image = _figures(
            self.dataset,
            described(self.validation, False),
            archive,
            self.validation,
            self.train,
            self.weights,
        )
        return {**figures, "image_only": by_image}

    def _out_of_patience(self) -> bool:
        return bool(self.best) and len(self.history) - 1 - int(self.best["epoch"]) >= self.config.patience

    def _save(self, path: Path) -> None:
        state = {
            "identity": self.identity,
            "history": self.history,
            "best": self.best,
            "best_state": dict(self.best_state),
            "model": self._moving(),
            "optimizer": self.optimizer.state_dict(),
            "log_scale": self.log_scale.detach(),
        }
        with atomic_write(path) as temporary:
            torch.save(state, temporary)

    def _restore(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["identity"] != self.identity:
                differs = [
                    k for k, v in self.identity["config"].items() if state["identity"]["config"].get(k) != v
                ] or ["data"]
                raise InputError(
                    f"{path} is of another run",
                    code="resume",
                    expected="the same data and options",
                    found=f"another {', '.join(differs)}",
                    cure="give those options to continue, or delete the file to begin again",
                )
            self.model.load_state_dict(state["model"], strict=False)
            self.optimizer.load_state_dict(state["optimizer"])
            self.log_scale.data.copy_(state["log_scale"])
            self.history, self.best, self.best_state = state["history"], state["best"], state["best_state"]
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, EOFError) as error:
            raise InputError(
                f"{path} cannot be read", code="resume", found=str(error), cure="delete it to begin again"
            ) from None
        log.info("resumed after epoch %d", len(self.history) - 1)


@torch.inference_mode()
def held_out_metrics(
    model: Skinret,
    dataset: Dataset,
    tokenize: TextEncoderInput,
    archive: Indices,
    queries: Indices,
) -> dict[str, Any]:
    """Query with the held-out fold, from pixels and in full precision, as the bundle will."""
    model.eval()
    device = next(model.parameters()).device

    def described(indices: Indices, worded: bool) -> torch.Tensor:
        parts = []
        for batch in np.array_split(indices, max(1, len(indices) // 16)):
            maps = model.visual_encoder(torch.from_numpy(dataset.pixels[batch]).to(device))
            if worded:
                texts = [", ".join(dataset.phrases[n]) for n in batch]
                ids, mask = (torch.from_numpy(a).to(device) for a in tokenize(texts)[:2])
                alone = torch.tensor([not text for text in texts], device=device)
                maps = model.compose(maps, model.text_encoder(ids, mask), mask, alone)
            parts.append(model.similarity_head(*maps)[0])
        return torch.cat(parts)

    cases = described(archive, False)
    w = score_weights(model.similarity_head.layout, model.config.beta, model.config.gamma)
    weights = torch.from_numpy(w).float().to(device)
    return {
        kind: _figures(dataset, described(queries, worded), cases, queries, archive, weights)
        for kind, worded in (("image_words", True), ("image_only", False))
    }


def _figures(
    dataset: Dataset,
    d_q: torch.Tensor,
    d_t: torch.Tensor,
    queries: Indices,
    archive: Indices,
    weights: torch.Tensor,
) -> dict[str, Any]:
    scores = np.einsum("qd,ad->qa", (d_q * weights).cpu().numpy(), d_t.cpu().numpy())
    asked, cases = (
        Labels(
            [dataset.case_ids[n] for n in part],
            [dataset.groups[n] for n in part],
            [{} for _ in part],
            [dataset.pictures[n] for n in part],
        )
        for part in (queries, archive)
    )
    return retrieval_metrics(rank(scores, asked, cases), asked, cases)
