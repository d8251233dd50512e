"""Logistic regressions on frozen features and on one-hot words: the product of class posteriors."""

from typing import cast

import numpy as np

from ..data import Split
from ..train import TrainConfig
from .base import IMAGE_ONLY, IMAGE_WORDS, OWN, WORDS_ALONE, Array, Ranker, System, Uses, fixed, products
from .heads import classifier
from .inputs import Inputs

_WORD = 3.0  # the weight of a word, relative to image features of unit variance


def _fit(inputs: Inputs, subsets: Split, config: TrainConfig) -> Ranker:
    def posteriors(x: Array) -> Array:
        probe = classifier(x, inputs, subsets.archive)
        return cast(Array, probe.predict_proba(x).astype(np.float32))

    image = inputs.averaged(subsets.archive)
    words = _WORD * inputs.words
    cases = posteriors(image)
    queries = {IMAGE_WORDS: np.hstack([image, words]), IMAGE_ONLY: image}
    if words.shape[1]:
        queries[WORDS_ALONE] = words
    scores = {kind: products(posteriors(x)[subsets.test], cases) for kind, x in queries.items()}
    worded = words[subsets.test].any(1, keepdims=True)  # a query without words is its image alone
    scores[IMAGE_WORDS] = np.where(worded, scores[IMAGE_WORDS], scores[IMAGE_ONLY])
    return fixed(scores)


LINEAR_PROBE = System(
    name="linear-probe",
    source="our own baseline, on the mean of all orientations of a picture",
    fidelity=OWN,
    uses=Uses(labels=True),
    fit=_fit,
)
