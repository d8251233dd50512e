"""The systems that the model is compared with, each in a file of its own, in the order of the table."""

from collections.abc import Mapping

from ..train import PAPER
from .artemis import ARTEMIS
from .base import OWN, RECONSTRUCTION, Model, System
from .combiner import COMBINER
from .comquery import COMQUERY
from .dahnet import DAHNET, DAHNET_B
from .deml import DEML, DEML_LABELS
from .late_fusion import LATE_FUSION
from .probe import LINEAR_PROBE
from .projection import PROJECTION
from .snf import SNF_DCA, SNF_DCA_LABELS
from .texture import MASK_TEXTURE, TEXTURE
from .tirg import TIRG
from .tuned import TUNED_COSSIM
from .walsh import CSQ, WALSH_CODES

# The rows that are trained as the model is, and queried through an exported bundle.
MODELS: Mapping[str, Model] = {
    "skinret": Model(source="this project", fidelity=OWN, settings={}),
    "paper": Model(
        source="Wang et al. 2026, global-local alignment of composed queries",
        fidelity=RECONSTRUCTION,
        deviations=(
            "The paper's text where it speaks; else the plain choice, and a loss of our own.",
            "Frozen encoders, those of --vision and --text. The paper has Swin and BERT.",
            "15 % of the training folds choose the epoch; they do not train.",
            "Its queries by the image alone are untrained.",
        ),
        settings=PAPER,
    ),
}
SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (
        LINEAR_PROBE,
        PROJECTION,
        TUNED_COSSIM,
        LATE_FUSION,
        TIRG,
        COMBINER,
        ARTEMIS,
        COMQUERY,
        DAHNET,
        DAHNET_B,
        DEML,
        DEML_LABELS,
        SNF_DCA,
        SNF_DCA_LABELS,
        TEXTURE,
        MASK_TEXTURE,
        CSQ,
        WALSH_CODES,
    )
}
