"""The training loop: frozen or tuned encoders, early stopping on a validation part, resume after a kill."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from skinret_infer.cases import CaseTable
from skinret_infer.errors import InputError
from skinret_infer.files import whole_file
from skinret_infer.image import ImageRecipe
from skinret_infer.metrics import Labels, rank, retrieval_metrics
from skinret_infer.text import TextEncoderInput, TextRecipe

from .checkpoint import Checkpoint
from .data import SYMMETRIES, Dataset, FrozenMaps, ImageMaps, Indices, Words, image_maps, load_dataset, split
from .loss import multi_positive_contrastive
from .model import Skinret, block_scale, load_pretrained

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What the paper states (Adam, 1e-4, 1e-5, 100, 30), and what it leaves open."""

    vision: str = "microsoft/swin-tiny-patch4-window7-224"
    text: str = "google-bert/bert-base-uncased"
    tune_vision: bool = False  # frozen maps are computed once and kept
    tune_text: bool = False
    image_size: int = 224
    fit: str = "crop"
    tokens: int = 64
    width: int | None = (
        None  # None: 256 on a frozen backbone, whose maps nothing else adapts; its own if it is tuned
    )
    map_side: int = 8
    layers: int = 1
    regions: int = 8
    aggregation: str = "normalized"
    beta: float = 0.6
    dropout: float = 0.1
    epochs: int = 100
    patience: int = 30
    batch: int = 64
    bf16: bool = False  # the composer in bfloat16: faster where the CPU or GPU has it
    lr: float = 1e-4
    weight_decay: float = 1e-5
    temperature: float = 0.1  # of S/3 at the start; it is learned
    text_dropout: float = 0.2  # how often a query is the image alone
    text_views: int = 8  # ways to say a case
    symmetries: int = 4  # of the square, as augmentation
    validation: float = 0.15  # of the training data
    folds: int = 5
    fold: int | None = None  # the held-out one; None trains on everything
    seed: int = 0
    name: str = "skinret"
    version: str = "0.1.0"

    def __post_init__(self) -> None:
        if self.symmetries not in SYMMETRIES:
            raise InputError(
                "symmetries cannot be used",
                code="option",
                expected="1, 2, 4 or 8",
                found=str(self.symmetries),
            )
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise InputError(
                "the held-out fold does not exist",
                code="option",
                expected=f"0 to {self.folds - 1}",
                found=str(self.fold),
            )


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
    resume: Path | None = None,
    quiet: bool = False,
    stop: Callable[[int], bool] | None = None,
) -> Trained:
    """Train a model on the cases of a table.

    cache : the folder of the frozen maps, kept from run to run.
    resume : where the state is written after each epoch; a run killed there goes on from it, to the same end.
    stop : asked after each epoch; True ends the training there, as a kill would.

    Raises InputError for data or options that cannot be used.
    """
    image = ImageRecipe(size=config.image_size, fit=config.fit)
    text = TextRecipe(length=config.tokens)
    dataset = load_dataset(table, image, text, quiet=quiet)
    parts = split(
        dataset, folds=config.folds, fold=config.fold, validation=config.validation, seed=config.seed
    )
    torch.manual_seed(config.seed)
    model, tokenizer = load_pretrained(
        config.vision,
        config.text,
        image_size=config.image_size,
        map_side=config.map_side,
        layers=config.layers,
        width=config.width or (None if config.tune_vision else 256),
        regions=config.regions,
        beta=config.beta,
        aggregation=config.aggregation,
        dropout=config.dropout,
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.visual_encoder.backbone.requires_grad_(config.tune_vision)
    model.text_encoder.requires_grad_(config.tune_text)
    tokenize = TextEncoderInput(tokenizer, text)
    frozen = None if config.tune_vision else FrozenMaps(model, dataset, config.symmetries, cache, quiet=quiet)
    words = Words(
        model, dataset, tokenize, config.text_views, config.seed, frozen=not config.tune_text, quiet=quiet
    )
    loop = _Loop(
        model, dataset, words, image_maps(model, dataset, frozen), config, parts.train, parts.validation
    )
    began = time.perf_counter()
    loop.run(resume, quiet, stop)
    minutes = (time.perf_counter() - began) / 60
    model.load_state_dict(loop.best_state, strict=False)
    metrics: dict[str, Any] = {
        "validation": loop.best,
        "epochs": len(loop.history),
        "minutes": round(minutes, 2),
    }
    if len(parts.test):
        metrics["held_out"] = held_out_metrics(model, dataset, tokenize, parts.archive, parts.test)
        metrics["protocol"] = (
            f"fold {config.fold} of {config.folds} stratified folds (seed {config.seed}) held out: "
            f"{len(parts.test)} queries, archive of the other folds: {len(parts.archive)} cases; "
            f"model chosen on {len(parts.validation)} of those"
        )
    origin = {
        "data": f"{len(table.cases)} cases: "
        + ", ".join(f"{g} {dataset.groups.count(g)}" for g in sorted(set(dataset.groups))),
        "data_sha256": dataset.digest,
        "training": {
            k: v if not isinstance(v, str) or k not in ("vision", "text") else Path(v).name
            for k, v in asdict(config).items()
        },
    }
    checkpoint = Checkpoint(
        config=model.config,
        image=image,
        text=text,
        tokenizer=tokenizer,
        state=model.state_dict(),
        name=config.name,
        version=config.version,
        origin=origin,
        metrics=metrics,
    )
    ids = np.array(dataset.case_ids)
    return Trained(checkpoint, ids[parts.archive].tolist(), ids[parts.test].tolist(), loop.history)


class _Loop:
    """The epochs. Each one's random choices follow from the seed and its number: resumed is the same."""

    def __init__(
        self,
        model: Skinret,
        dataset: Dataset,
        words: Words,
        maps: ImageMaps,
        config: TrainConfig,
        train: Indices,
        validation: Indices,
    ) -> None:
        self.model, self.dataset, self.words, self.maps, self.config = model, dataset, words, maps, config
        self.train, self.validation = train, validation
        self.device = next(model.parameters()).device
        self.log_scale = torch.nn.Parameter(torch.tensor(1 / config.temperature, device=self.device).log())
        trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            [*trainable, self.log_scale], lr=config.lr, weight_decay=config.weight_decay
        )
        self.weights = block_scale(model.similarity_head.layout, config.beta).to(self.device)
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
                loss = self._epoch(epoch)
                figures = self._validate()
                self.history.append(
                    {"epoch": epoch, "loss": loss, "mAP": figures["mAP"], "Acc@1": figures["Acc@1"]}
                )
                if figures["mAP"] > self.best.get("mAP", -1.0):
                    self.best = {**figures, "epoch": epoch}
                    still = {k for k, p in self.model.named_parameters() if not p.requires_grad}
                    moving = {k: v for k, v in self.model.state_dict().items() if k not in still}
                    self.best_state = {k: v.detach().cpu().clone() for k, v in moving.items()}
                log.info(
                    "epoch %d: loss %.4f, validation mAP %.2f, Acc@1 %.2f",
                    epoch,
                    loss,
                    figures["mAP"],
                    figures["Acc@1"],
                )
                bar.set_postfix(
                    loss=f"{loss:.3f}", mAP=f"{figures['mAP']:.1f}", best=f"{self.best['mAP']:.1f}"
                )
                bar.update()
                if resume:
                    self._save(resume)
                if stop and stop(epoch):
                    break

    def _epoch(self, epoch: int) -> float:
        torch.manual_seed(self.config.seed * 100_003 + epoch)
        rng = np.random.default_rng([self.config.seed, epoch])
        self.model.train()
        self.model.visual_encoder.backbone.train(self.config.tune_vision)
        self.model.text_encoder.train(self.config.tune_text)
        order = rng.permutation(self.train)
        losses = []
        for batch in np.array_split(order, max(1, len(order) // self.config.batch)):
            x = self.maps(batch, rng.integers(self.config.symmetries, size=len(batch)))
            views = rng.integers(self.words.views, size=len(batch))
            tokens, mask = self.words.get(self.model, batch, views)
            alone = torch.from_numpy(
                (rng.random(len(batch)) < self.config.text_dropout) | self.words.blank[batch]
            ).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
                asked = self.model.compose(x, tokens, mask, alone)
            d_q, d_t = (self.model.similarity_head(*maps)[0] for maps in (asked, x))
            scores = (d_q * self.weights) @ d_t.T  # S / 3
            labels = torch.from_numpy(self.dataset.labels[batch]).to(self.device)
            loss = multi_positive_contrastive(scores * self.log_scale.exp().clamp(max=100.0), labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            losses.append(float(loss.detach()))
        return float(np.mean(losses))

    @torch.inference_mode()
    def _validate(self) -> dict[str, Any]:
        """Query with the validation part, all its words said, against the training part."""
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
        return {**figures, "image_alone": by_image}

    def _out_of_patience(self) -> bool:
        return bool(self.best) and len(self.history) - 1 - int(self.best["epoch"]) >= self.config.patience

    def _identity(self) -> dict[str, Any]:
        options = {k: v for k, v in asdict(self.config).items() if k not in ("epochs", "patience")}
        return {"config": options, "data": self.dataset.digest}

    def _save(self, path: Path) -> None:
        state = {
            "identity": self._identity(),
            "history": self.history,
            "best": self.best,
            "best_state": dict(self.best_state),
            "model": {k: v for k, v in self.model.state_dict().items() if k in self.best_state},
            "optimizer": self.optimizer.state_dict(),
            "log_scale": self.log_scale.detach(),
        }
        with whole_file(path) as temporary:
            torch.save(state, temporary)

    def _restore(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["identity"] != self._identity():
                differs = [
                    k
                    for k, v in self._identity()["config"].items()
                    if state["identity"]["config"].get(k) != v
                ] or ["data"]
                raise InputError(
                    f"{path} is of another run",
                    code="resume",
                    expected="the same data and options",
                    found=f"another {', '.join(differs)}",
                    cure="give those options to go on, or delete the file to begin anew",
                )
            self.model.load_state_dict(state["model"], strict=False)
            self.optimizer.load_state_dict(state["optimizer"])
            self.log_scale.data.copy_(state["log_scale"])
            self.history, self.best, self.best_state = state["history"], state["best"], state["best_state"]
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, EOFError) as error:
            raise InputError(
                f"{path} cannot be read", code="resume", found=str(error), cure="delete it to begin anew"
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
    weights = block_scale(model.similarity_head.layout, model.config.beta).to(device)
    return {
        kind: _figures(dataset, described(queries, worded), cases, queries, archive, weights)
        for kind, worded in (("image_words", True), ("image_alone", False))
    }


def _figures(
    dataset: Dataset,
    d_q: torch.Tensor,
    d_t: torch.Tensor,
    queries: Indices,
    archive: Indices,
    weights: torch.Tensor,
) -> dict[str, Any]:
    scores = ((d_q * weights) @ d_t.T).cpu().numpy()
    asked, cases = (
        Labels([dataset.case_ids[n] for n in part], [dataset.groups[n] for n in part], [{} for _ in part])
        for part in (queries, archive)
    )
    return retrieval_metrics(rank(scores, asked, cases), asked, cases)
