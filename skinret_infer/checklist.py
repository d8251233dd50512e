"""The seven-point checklist in the form of Derm7pt: attributes, their values and their phrases."""

from collections.abc import Mapping

# The ten columns of Derm7pt that may be words of a query, in the table's order. Diagnosis, management, the
# seven-point score and the level of difficulty may not: they reveal the answer.
DERM7PT_PHRASES: Mapping[str, str] = {
    "pigment_network": "{} pigment network",
    "streaks": "{} streaks",
    "pigmentation": "{} pigmentation",
    "regression_structures": "{} regression structures",
    "dots_and_globules": "{} dots and globules",
    "blue_whitish_veil": "{} blue-whitish veil",
    "vascular_structures": "{} vascular structures",
    "elevation": "{} lesion",
    "location": "{} location",
    "sex": "{} patient",
}
CRITERIA = tuple(DERM7PT_PHRASES)[:7]  # those of the seven-point checklist


# Every value of the released table; an empty cell means that the value is unknown.
DERM7PT_VALUES: Mapping[str, set[str]] = {
    "pigment_network": {"absent", "typical", "atypical"},
    "streaks": {"absent", "regular", "irregular"},
    "pigmentation": {
        "absent", "diffuse regular", "diffuse irregular", "localized regular", "localized irregular",
    },
    "regression_structures": {"absent", "blue areas", "white areas", "combinations"},
    "dots_and_globules": {"absent", "regular", "irregular"},
    "blue_whitish_veil": {"absent", "present"},
    "vascular_structures": {
        "absent", "arborizing", "comma", "dotted", "hairpin", "linear irregular",
        "within regression", "wreath",
    },
    "elevation": {"flat", "palpable", "nodular"},
    "location": {
        "abdomen", "acral", "back", "buttocks", "chest", "genital areas", "head neck", "lower limbs",
        "upper limbs",
    },
    "sex": {"female", "male"},
}  # fmt: skip
