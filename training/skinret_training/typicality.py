"""How unlike the training pictures a picture is, from the backbone's low map, before what is learned.

A frozen backbone has not seen the training pictures: they are as typical to it as other dermoscopy, and can
set the limit. The low map tells photographs, blur and false colours apart best.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.model_selection import KFold
from torch import Tensor, nn
from torch.nn import functional as F

from skinret_infer._files import Listings, find_file, pictures_below
from skinret_infer.errors import InputError
from skinret_infer.tables import derm7pt_root

Array = npt.NDArray[np.float64]
SHARE = 0.01  # of pictures like those of the training that are beyond the limit
MIN_PICTURES = 10
_FOLDS = 5


class OtherPicture(NamedTuple):
    """A picture that is no dermoscopy, and the case that it shows, or "" if that is not known."""

    case_id: str
    path: Path


class Typicality(nn.Module):
    """The distance of a picture from the training pictures; one above 1 is unlike them.

    It is the larger of two, each in units of its limit: the squared Mahalanobis distance to the training
    pictures (Lee et al. 2018), and a linear discriminant between them and other pictures, if the training had
    any (outlier exposure, Hendrycks et al. 2019).
    """

    centre: Tensor
    whitening: Tensor
    direction: Tensor
    offset: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(d))
        self.register_buffer("whitening", torch.zeros(d, d))
        self.register_buffer("direction", torch.zeros(d))
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, low: Tensor) -> Tensor:
        """Low maps (B, h, w, d) of the backbone -> distances (B,)."""
        z = self.pool(low) - self.centre
        return torch.maximum((z @ self.whitening).square().sum(-1), z @ self.direction + self.offset)

    @staticmethod
    def pool(low: Tensor) -> Tensor:
        """Low maps (B, h, w, d) -> (B, d), the mean of the normalised positions."""
        return F.layer_norm(low, low.shape[-1:]).mean((1, 2))

    @torch.no_grad()
    def fit(self, pictures: Tensor, others: Tensor, seed: int) -> None:
        """Take the statistics from pooled maps: of the training pictures (N, d), and of others (M, d).

        M may be 0. The limits are from a cross-fit: the statistics of the other folds judge each picture. At
        most SHARE of the pictures are beyond a limit. Raises InputError for fewer than MIN_PICTURES.
        """
        if len(pictures) < MIN_PICTURES:
            raise InputError(
                "there are too few pictures to say which are unlike them",
                code="data-few",
                expected=f"at least {MIN_PICTURES} training cases",
                found=str(len(pictures)),
                cure="give more cases",
            )
        x, y = (t.cpu().numpy().astype(np.float64) for t in (pictures, others))
        scores = np.empty((len(x), 2))
        for rest, fold in KFold(_FOLDS, shuffle=True, random_state=seed).split(x):
            scores[fold] = _scores(_statistics(x[rest], y), x[fold])
        columns = scores if len(y) else scores[:, :1]
        # The same share of pictures is beyond each limit; the rank of a picture is the worse one.
        ranks = np.sort(columns.argsort(0).argsort(0).max(1))
        place = ranks[int(np.ceil((1 - SHARE) * len(x))) - 1]
        limits = np.sort(scores, 0)[place]
        centre, whitening, direction = _statistics(x, y)
        self.centre.copy_(torch.from_numpy(centre))
        self.whitening.copy_(torch.from_numpy(whitening / np.sqrt(limits[0])))
        middle = np.median(scores[:, 1])
        scale = limits[1] - middle if len(y) else 1.0
        self.direction.copy_(torch.from_numpy(direction / scale))
        self.offset.copy_(torch.tensor(-middle / scale))


def _statistics(pictures: Array, others: Array) -> tuple[Array, Array, Array]:
    """Return centre [d] and whitening [d, d] of pictures [N, d], and the discriminant [d] to others."""
    centre = pictures.mean(0)
    covariance, _ = ledoit_wolf(pictures - centre, assume_centered=True)
    whitening = np.linalg.cholesky(np.linalg.inv(covariance))
    if not len(others):
        return centre, whitening, np.zeros_like(centre)
    within = np.concatenate([pictures - centre, others - others.mean(0)])
    shared, _ = ledoit_wolf(within, assume_centered=True)
    return centre, whitening, np.linalg.solve(shared, others.mean(0) - centre)


def _scores(statistics: tuple[Array, Array, Array], pictures: Array) -> Array:
    """Return [N, 2]: the squared Mahalanobis distance and the discriminant of each picture."""
    centre, whitening, direction = statistics
    z = pictures - centre
    return np.stack([((z @ whitening) ** 2).sum(1), z @ direction], 1)


def read_others(source: Path) -> list[OtherPicture]:
    """Return the pictures of a folder, or of a Derm7pt release_v0 folder its clinical photographs.

    Raises InputError if there is none.
    """
    root = derm7pt_root(source)
    if (root / "meta" / "meta.csv").is_file():
        pictures = _clinical_photographs(root)
    else:
        pictures = [OtherPicture("", path) for path in pictures_below(source)]
    if not pictures:
        raise InputError(
            f"{source} has no pictures of another kind",
            code="unlike-missing",
            expected="a folder of pictures that are no dermoscopy, or a Derm7pt release_v0 folder",
            found="no picture" if source.is_dir() else "no such folder",
            cure="give another --unlike, or leave it out",
        )
    return pictures


def _clinical_photographs(root: Path) -> list[OtherPicture]:
    """Return the clinical photographs of Derm7pt; for some cases the table names the dermoscopy again."""
    with (root / "meta" / "meta.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["clinic"].lower() != row["derm"].lower()]
    listings: Listings = {}
    return [
        OtherPicture(row["case_num"], find_file(root / "images", row["clinic"], listings)) for row in rows
    ]
