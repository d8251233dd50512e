"""The values that an archive can store, and one spelling for equal texts."""

import math
import unicodedata

AttributeValue = str | int | float | bool


def is_storable(value: AttributeValue) -> bool:
    """Say whether SQLite and JSON can hold a value: no NUL, lone surrogate, NaN, or int over 64 bits."""
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
    return math.isfinite(value) if isinstance(value, float) else -(2**63) <= value < 2**63


def nfc(text: str) -> str:
    """Return a text in Unicode's normal form C: a Mac may write an accent as a separate character."""
    return unicodedata.normalize("NFC", text)
