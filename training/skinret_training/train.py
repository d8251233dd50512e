"""The training loop: frozen or tuned encoders, early stopping on a validation set, resume after a kill."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm.auto import tqdm

from skinret_infer._files import atomic_write
from skinret_infer.descriptor import GROUP_WEIGHT, score_weights
from skinret_infer.engines.cpus import available_cpus
from skinret_infer.errors import InputError
from skinret_infer.evaluation.metrics import Labels, rank, retrieval_metrics
from skinret_infer.imaging.recipe import ImageRecipe
from skinret_infer.tables import CaseTable
from skinret_infer.text import TextEncoderInput, TextRecipe
from skinret_infer.words.checklist import Checklist
from skinret_infer.words.reading import reader_of

from .calibration import first_hit_limits, fit_typicality
from .checkpoint import Checkpoint
from .data import (
    CaseTexts,
    Dataset,
    FrozenMaps,
    ImageMaps,
    Indices,
    Split,
    hold_out,
    image_maps,
    load_dataset,
    split,
)
from .loss import balancing_weights, concept_loss, multi_positive_contrastive
from .model import SYMMETRIES, Maps, Skinret, check_choices, load_pretrained
from .typicality import read_others

log = logging.getLogger(__name__)
SCHEDULES = ("cosine", "constant")
OPTIMIZERS = ("adamw", "adam")  # Adam adds the decay to the gradient
FINETUNE = ("none", "last-stage", "full")
_WARM_UP = 20  # steps


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The training recipe. The defaults were the best on Derm7pt with frozen backbones."""

    vision: str = "microsoft/swin-tiny-patch4-window7-224"
    text: str = "google-bert/bert-base-uncased"
    finetune_vision: str = "none"  # "last-stage": the blocks between mid and high map; "full": all
    finetune_text: bool = False
    image_size: int = 224
    fit: str = "crop"
    tokens: int = 64
    checklist: str = ""  # a TOML file; "": the seven-point checklist
    tta: int = 1
    neck: str = "fused"
    width: int | None = 64  # of the maps; None keeps the backbone's own
    max_map_size: int = 8
    fusion: str = "additive"
    layers: int = 1  # of the cross-modal transformer, with cross-attention
    regions: int = 8
    aggregation: str = "normalized"
    beta: float = 0.6
    gamma: float = 0.8  # weight of the concept similarity, beside S / 3
    group_weight: float = GROUP_WEIGHT  # among the concepts
    dropout: float = 0.3  # in the composer, and of the channels of a fused neck
    epochs: int = 60
    patience: int = 30
    batch: int = 64
    bf16: bool = False  # all but the similarity head in bfloat16: faster where the CPU or GPU has it
    lr: float = 2e-3
    encoder_lr: float = 1e-4  # of encoders that are tuned, without weight decay
    schedule: str = "cosine"  # after a short warm-up; a constant rate has none
    optimizer: str = "adamw"
    weight_decay: float = 1.0
    temperature: float = 0.5  # of S/3 at the start; it is learned
    image_only_loss_weight: float = 0.5  # of queries by the image alone, beside those with words
    words_only_loss_weight: float = 0.3  # of queries by the words alone
    # Share of the epochs before them. The shift starts at zero, where a unit vector has a huge gradient: it
    # would fill AdamW's second moments and slow the shift for the rest of the training.
    words_only_start: float = 0.25
    contrastive_weight: float = 3.0  # of the contrastive loss
    group_loss_weight: float = 1.0  # of the group's cross-entropy; 0: no concepts, and the score is S / 3
    smoothing: float = 0.05  # of the group's labels
    group_balance: float = 0.5  # power of the inverse frequency that weighs a group in its cross-entropy
    criteria_loss_weight: float = 2.0  # of the criteria's cross-entropy
    text_views: int = 12  # texts of each case
    augment_dihedral: int = 4  # symmetries of the square, as augmentation
    unlike: str = ""  # pictures that are no dermoscopy (read_others), which sharpen the warning of them
    # Share of the training cases that set the limits of first hits. A second model is trained without them.
    calibration: float = 0.2  # 0: no limits
    validation: float = 0.0  # share of the training data that chooses the epoch; 0: keep the last epoch
    folds: int = 5
    fold: int | None = None  # the held-out fold; None trains on everything
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
        check_choices(self, "the option", schedule=SCHEDULES, finetune_vision=FINETUNE, optimizer=OPTIMIZERS)
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise InputError(
                "the held-out fold does not exist",
                code="option",
                expected=f"0 to {self.folds - 1}",
                found=str(self.fold),
            )


# The paper's settings (Adam, 1e-4, 1e-5, 100 epochs, patience 30, beta 0.6, Eq. 7 as printed), and the plain
# choice for settings that it does not state.
PAPER: dict[str, Any] = {
    "neck": "level",
    "width": 256,
    "fusion": "cross-attention",
    "aggregation": "mean",
    "epochs": 100,
    "lr": 1e-4,
    "schedule": "constant",
    "optimizer": "adam",
    "weight_decay": 1e-5,
    "temperature": 0.1,
    "dropout": 0.1,
    "contrastive_weight": 1.0,
    "image_only_loss_weight": 0.0,
    "words_only_loss_weight": 0.0,
    "group_loss_weight": 0.0,
    "validation": 0.15,
}


@dataclass(frozen=True, slots=True)
class Trained:
    """The checkpoint, the case ids of the archive and of the held-out queries, and the figures by epoch."""

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
    dataset : the table's images and words, if they are already loaded.
    resume : the file of the state after each epoch. A killed run continues from it, with the same result.
    measure : whether the model queries with the held-out fold, once. False where the exported bundle does it.
    stop : called after each epoch; True ends the training there, as a kill would.

    Raises InputError for data or options that cannot be used.
    """
    torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))  # PyTorch ignores CPU quotas
    image = ImageRecipe(size=config.image_size, fit=config.fit)
    text = TextRecipe(length=config.tokens)
    dataset = dataset or load_dataset(table, image, read_checklist(config), quiet=quiet)
    case_split = split(
        dataset, folds=config.folds, fold=config.fold, validation=config.validation, seed=config.seed
    )
    # Before the training, so that what cannot be used is an error at once.
    others = read_others(Path(config.unlike)) if config.unlike else []
    inner = hold_out(dataset, case_split, config.calibration, config.seed) if config.calibration else None
    fitted = _fit(config, dataset, case_split, text, cache, resume, quiet, stop)
    model, loop, tokenizer = fitted.model, fitted.loop, fitted.tokenizer
    metrics: dict[str, Any] = {"epochs": len(loop.history), "minutes": fitted.minutes}
    if len(case_split.validation):
        metrics["validation"] = loop.best
    if measure and len(case_split.test):
        archive, queries = case_split.archive, case_split.test
        tokenize = TextEncoderInput(tokenizer, text)
        metrics["held_out"] = held_out_metrics(model, dataset, tokenize, archive, queries)
        metrics["protocol"] = _protocol(config, case_split)
    fit_typicality(
        model,
        dataset,
        fitted.frozen,
        case_split.archive,
        others=others,
        cache=cache,
        image=image,
        seed=config.seed,
    )
    calibration: dict[str, Any] = {"pictures": len(case_split.archive), "first_hits": {}}
    if inner:
        other = _fit(config, dataset, inner, text, cache, None, quiet, None)
        calibration["first_hits"] = first_hit_limits(
            other.model, dataset, other.maps, other.texts, inner.archive, inner.test
        )
    checkpoint = Checkpoint(
        config=model.config,
        image=image,
        text=text,
        checklist=dataset.checklist,
        tokenizer=tokenizer,
        state=model.state_dict(),
        name=config.name,
        version=config.version,
        origin=_origin(config, dataset),
        metrics=metrics,
        calibration=calibration,
    )
    ids = np.array(dataset.case_ids)
    return Trained(checkpoint, ids[case_split.archive].tolist(), ids[case_split.test].tolist(), loop.history)


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A trained model, and what it was trained from."""

    model: Skinret
    tokenizer: str
    frozen: FrozenMaps | None
    texts: CaseTexts
    maps: ImageMaps
    loop: "_Loop"
    minutes: float


def _fit(
    config: TrainConfig,
    dataset: Dataset,
    case_split: Split,
    text: TextRecipe,
    cache: Path,
    resume: Path | None,
    quiet: bool,
    stop: Callable[[int], bool] | None,
) -> _Fitted:
    """Train a model on the training cases of a split."""
    torch.manual_seed(config.seed)
    model, tokenizer = _build(config, dataset)
    tokenize = TextEncoderInput(tokenizer, text)
    last = config.finetune_vision == "last-stage"
    frozen = None
    if config.finetune_vision != "full":
        frozen = FrozenMaps(model, dataset, config.augment_dihedral, cache, last=last, quiet=quiet)
    texts = CaseTexts(
        model,
        dataset,
        tokenize,
        config.text_views,
        config.seed,
        frozen=not config.finetune_text,
        cache=cache,
        quiet=quiet,
    )
    maps = image_maps(model, dataset, frozen, tuned=last)
    _standardize(model, frozen, texts, case_split.train)
    loop = _Loop(model, dataset, texts, maps, config, case_split.train, case_split.validation)
    start = time.perf_counter()
    loop.run(resume, quiet, stop)
    minutes = round((time.perf_counter() - start) / 60, 2)
    model.load_state_dict(loop.best_state, strict=False)
    return _Fitted(model, tokenizer, frozen, texts, maps, loop, minutes)


def read_checklist(config: TrainConfig) -> Checklist:
    """Return the checklist of a configuration. Raises InputError if it cannot be used."""
    if not config.checklist:
        return Checklist.seven_point()
    checklist = Checklist.read(config.checklist)
    reader_of(checklist)  # checks that every canonical phrase can be read
    return checklist


def _build(config: TrainConfig, dataset: Dataset) -> tuple[Skinret, str]:
    """Return the model on its device, with gradients only where it is trained, and the tokenizer's text."""
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
        group_weight=config.group_weight,
        concepts=dataset.concepts if config.group_loss_weight else {},
        aggregation=config.aggregation,
        dropout=config.dropout,
        typicality=True,
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.visual_encoder.backbone.requires_grad_(config.finetune_vision == "full")
    if config.finetune_vision == "last-stage":
        for block in model.visual_encoder.last_stage():
            block.requires_grad_(True)
    model.text_encoder.requires_grad_(config.finetune_text)
    return model, tokenizer


def _protocol(config: TrainConfig, case_split: Split) -> str:
    """Return a sentence on how the held-out figures were measured."""
    choice = "all of them trained, to the last epoch"
    if len(case_split.validation):
        choice = f"epoch chosen on {len(case_split.validation)} of those"
    return (
        f"fold {config.fold} of {config.folds} stratified folds (seed {config.seed}) held out: "
        f"{len(case_split.test)} queries, archive of the other folds: {len(case_split.archive)} cases; "
        f"{choice}"
    )


def _origin(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """Return the manifest's facts about data and options; of paths only the last name."""
    groups = ", ".join(f"{group} {dataset.groups.count(group)}" for group in sorted(set(dataset.groups)))
    options = asdict(config)
    options |= {name: Path(options[name]).name for name in ("vision", "text", "checklist", "unlike")}
    return {
        "data": f"{len(dataset.case_ids)} cases: {groups}",
        "data_sha256": dataset.digest,
        "training": options,
    }


@torch.no_grad()
def _standardize(model: Skinret, frozen: FrozenMaps | None, texts: CaseTexts, train: Indices) -> None:
    """Set centre and scale so that the frozen features of the training cases have mean 0 and equal scale."""
    first = np.zeros(len(train), np.int64)
    if frozen is not None and model.visual_encoder.fused:
        model.visual_encoder.standardize(frozen.get(train, first))
    if model.composer.shift is not None:
        model.composer.shift.standardize(*texts.get(model, train, first))


class _Loop:
    """The epochs. The seed and an epoch's number fix its random choices, so a resumed run gives the same."""

    def __init__(
        self,
        model: Skinret,
        dataset: Dataset,
        texts: CaseTexts,
        maps: ImageMaps,
        config: TrainConfig,
        train: Indices,
        validation: Indices,
    ) -> None:
        self.model, self.dataset, self.texts, self.maps, self.config = model, dataset, texts, maps, config
        self.train, self.validation = train, validation
        self.device = next(model.parameters()).device
        self.log_scale = torch.nn.Parameter(torch.tensor(1 / config.temperature, device=self.device).log())
        layout = model.similarity_head.layout
        encoders = [*model.visual_encoder.backbone.parameters(), *model.text_encoder.parameters()]
        tuned = [p for p in encoders if p.requires_grad]
        encoder_ids = {id(p) for p in encoders}
        new = [p for p in model.parameters() if id(p) not in encoder_ids]
        new.append(self.log_scale)
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        self.optimizer = kind(
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
        self.visual_weights, self.weights = (  # of S / 3, and of the score
            torch.from_numpy(score_weights(layout, config.beta, gamma, config.group_weight))
            .float()
            .to(self.device)
            for gamma in (0.0, model.config.gamma)
        )
        labels = torch.from_numpy(dataset.labels[train])
        weights = balancing_weights(labels, len(dataset.concepts["group"]), config.group_balance)
        self.group_weights = weights.to(self.device)
        # A resumed run may change these: they do not change the epochs before them.
        changeable = ("patience",) if config.schedule == "cosine" else ("patience", "epochs")
        self.identity: dict[str, Any] = {  # of the run; computed once, because it hashes every pixel
            "config": {k: v for k, v in asdict(config).items() if k not in changeable},
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
                figures = {"loss": self._run_epoch(epoch)}
                if len(self.validation):
                    validation = self._validate()
                    figures |= {k: validation[k] for k in ("mAP", "Acc@1")}
                    if validation["mAP"] > self.best.get("mAP", -1.0):
                        self.best = {**validation, "epoch": epoch}
                        self.best_state = self._trained_state()
                self.history.append({"epoch": epoch, **figures})
                log.info("epoch %d: %s", epoch, ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
                bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items()})
                bar.update()
                if resume:
                    self._save(resume)
                if stop and stop(epoch):
                    break

    def _run_epoch(self, epoch: int) -> float:
        torch.manual_seed(self.config.seed * 100_003 + epoch)
        rng = np.random.default_rng([self.config.seed, epoch])
        self.model.train()
        self.model.visual_encoder.backbone.train(self.config.finetune_vision == "full")
        self.model.text_encoder.train(self.config.finetune_text)
        order = rng.permutation(self.train)
        losses = []
        steps = max(1, len(order) // self.config.batch)
        for step, batch in enumerate(np.array_split(order, steps)):
            image_views = rng.integers(self.config.augment_dihedral, size=len(batch))
            text_views = rng.integers(self.texts.views, size=len(batch))
            blank = torch.from_numpy(self.texts.blank[batch]).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
                x = self.maps(batch, image_views)
                tokens, mask = self.texts.get(self.model, batch, text_views)
                composed = self.model.compose(x, tokens, mask, blank)
                words = self._words_alone(x, tokens, mask, blank) if self._trains_words(epoch) else None
            d_t = self.model.similarity_head(*(m.float() for m in x))[0]
            weight = 1.0 - blank.float()  # of the words
            loss = self._objective(composed, d_t, batch, weight)
            if self.config.image_only_loss_weight:
                loss = loss + self.config.image_only_loss_weight * self._objective(x, d_t, batch)
            losses.append(float(loss.detach()))  # without the words alone, which come later
            if words is not None:
                loss = loss + self.config.words_only_loss_weight * self._objective(words, d_t, batch, weight)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * self._rate_factor(epoch + step / steps, steps)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return float(np.mean(losses))

    def _trains_words(self, epoch: int) -> bool:
        config = self.config
        return config.words_only_loss_weight > 0 and epoch >= config.words_only_start * config.epochs

    def _words_alone(self, x: Maps, tokens: torch.Tensor, mask: torch.Tensor, blank: torch.Tensor) -> Maps:
        """Return the maps of queries by words alone, which the composer makes of zeros.

        The cases of `blank` have no words; they keep their picture.
        """
        zeros = tuple(torch.where(blank[:, None, None, None], m, torch.zeros_like(m)) for m in x)
        return self.model.compose(cast(Maps, zeros), tokens, mask, blank)

    def _objective(
        self, maps: Maps, d_t: torch.Tensor, batch: Indices, words: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of queries, of their maps, against the cases d_t (B, D) of a batch.

        words : the weight of the queries' words (B,), as for the similarity head.
        """
        config, head = self.config, self.model.similarity_head
        low, mid, high = (m.float() for m in maps)
        d_q = head(low, mid, high, words)[0]
        targets = torch.from_numpy(self.dataset.targets[batch]).to(self.device)
        scores = (d_q * self.visual_weights) @ d_t.T  # S / 3
        loss = multi_positive_contrastive(scores * self.log_scale.exp().clamp(max=100.0), targets[:, 0])
        loss = config.contrastive_weight * loss
        if logits := head.concept_logits(low, mid, high, words):
            group_loss = concept_loss(logits[:1], targets[:, :1], config.smoothing, self.group_weights)
            loss = loss + config.group_loss_weight * group_loss
            if logits[1:]:
                loss = loss + config.criteria_loss_weight * concept_loss(logits[1:], targets[:, 1:])
        return loss

    def _rate_factor(self, epoch: float, steps: int) -> float:
        """Return the factor of the learning rate: 1, or a short warm-up and then half a cosine."""
        if self.config.schedule == "constant":
            return 1.0
        warm_up = min(1.0, (epoch * steps + 1) / _WARM_UP)
        return warm_up * (1 + math.cos(math.pi * epoch / self.config.epochs)) / 2

    def _trained_state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the state without frozen parameters."""
        frozen = {k for k, p in self.model.named_parameters() if not p.requires_grad}
        return {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items() if k not in frozen}

    @torch.inference_mode()
    def _validate(self) -> dict[str, Any]:
        """Query the training set with the validation set, with all its words and by image alone."""
        self.model.eval()

        def embed(indices: Indices, with_words: bool) -> torch.Tensor:
            descriptors = []
            for batch in np.array_split(indices, max(1, len(indices) // 64)):
                first = np.zeros(len(batch), np.int64)
                x, words = self.maps(batch, first), None
                if with_words:
                    alone = torch.from_numpy(self.texts.blank[batch]).to(self.device)
                    x = self.model.compose(x, *self.texts.get(self.model, batch, first), alone)
                    words = 1.0 - alone.float()
                descriptors.append(self.model.similarity_head(*x, words)[0])
            return torch.cat(descriptors)

        archive = embed(self.train, False)
        composed, by_image = (
            _figures(
                self.dataset,
                embed(self.validation, with_words),
                archive,
                self.validation,
                self.train,
                self.weights,
            )
            for with_words in (True, False)
        )
        return {**composed, "image_only": by_image}

    def _out_of_patience(self) -> bool:
        return bool(self.best) and len(self.history) - 1 - int(self.best["epoch"]) >= self.config.patience

    def _save(self, path: Path) -> None:
        state = {
            "identity": self.identity,
            "history": self.history,
            "best": self.best,
            "best_state": dict(self.best_state),
            "model": self._trained_state(),
            "optimizer": self.optimizer.state_dict(),
            "log_scale": self.log_scale.detach(),
        }
        with atomic_write(path) as temporary:
            torch.save(state, temporary)

    def _restore(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["identity"] != self.identity:
                different = [
                    k for k, v in self.identity["config"].items() if state["identity"]["config"].get(k) != v
                ] or ["data"]
                raise InputError(
                    f"{path} belongs to another run",
                    code="resume",
                    expected="the same data and options",
                    found=f"another {', '.join(different)}",
                    cure="give the same options to continue, or delete the file to start again",
                )
            self.model.load_state_dict(state["model"], strict=False)
            self.optimizer.load_state_dict(state["optimizer"])
            self.log_scale.data.copy_(state["log_scale"])
            self.history, self.best, self.best_state = state["history"], state["best"], state["best_state"]
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, EOFError) as error:
            raise InputError(
                f"{path} cannot be read", code="resume", found=str(error), cure="delete it to start again"
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
    """Query with the held-out fold, from pixels and in fp32, as the bundle does."""
    model.eval()
    device = next(model.parameters()).device

    def embed(indices: Indices, with_words: bool) -> torch.Tensor:
        descriptors = []
        for batch in np.array_split(indices, max(1, len(indices) // 16)):
            maps, words = model.visual_encoder(torch.from_numpy(dataset.pixels[batch]).to(device)), None
            if with_words:
                texts = [dataset.checklist.text_of(dataset.findings[n]) for n in batch]
                ids, mask = (torch.from_numpy(a).to(device) for a in tokenize(texts)[:2])
                alone = torch.tensor([not text for text in texts], device=device)
                maps = model.compose(maps, model.text_encoder(ids, mask), mask, alone)
                words = 1.0 - alone.float()
            descriptors.append(model.similarity_head(*maps, words)[0])
        return torch.cat(descriptors)

    cases = embed(archive, False)
    score = model.config
    w = score_weights(model.similarity_head.layout, score.beta, score.gamma, score.group_weight)
    weights = torch.from_numpy(w).float().to(device)
    return {
        kind: _figures(dataset, embed(queries, with_words), cases, queries, archive, weights)
        for kind, with_words in (("image_words", True), ("image_only", False))
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
    query_labels, case_labels = (
        Labels(
            [dataset.case_ids[n] for n in indices],
            [dataset.groups[n] for n in indices],
            [{} for _ in indices],
            [dataset.pictures[n] for n in indices],
        )
        for indices in (queries, archive)
    )
    return retrieval_metrics(rank(scores, query_labels, case_labels), query_labels, case_labels)
