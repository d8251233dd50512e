"""What a vision backbone was adapted on before the training, as its folder records it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from skinret_infer.errors import InputError

RECORD, PICTURES = "adaptation.json", "adaptation-pictures.txt"


@dataclass(frozen=True, slots=True)
class Adaptation:
    """The data of an adaptation.

    folder : of the backbone.
    pictures : how many pictures the backbone was adapted on.
    sha256 : of that data.
    seen : SHA-256 of each decoded picture, see `pixel_sha256`.
    """

    folder: Path
    pictures: int
    sha256: str
    seen: frozenset[str]

    def check_unseen(self, what: str, case_ids: Iterable[str], pictures: Iterable[str]) -> None:
        """Raise InputError, which names the cases, if the backbone was adapted on their pictures.

        what : the cases as a text for the message.
        pictures : as in `Dataset.pictures`.
        """
        if known := [i for i, p in zip(case_ids, pictures, strict=True) if p in self.seen]:
            raise InputError(
                f"the backbone {self.folder.name} was adapted on pictures of {what}",
                code="adaptation-seen",
                expected="an evaluation on pictures that the backbone has not seen",
                found=f"{len(known)} of them: {', '.join(known[:5])}{' ...' if len(known) > 5 else ''}",
                cure="adapt a backbone without these pictures, or leave the cases out of the table",
            )


def read_adaptation(vision: str) -> Adaptation | None:
    """Return the adaptation of a backbone; None for a hub name or a folder without adaptation.json.

    Raises InputError if the record or the list of pictures cannot be read.
    """
    folder = Path(vision)
    if not (folder / RECORD).is_file():
        return None
    try:
        data = json.loads((folder / RECORD).read_text("utf-8"))["data"]
        seen = frozenset((folder / PICTURES).read_text("ascii").split())
        return Adaptation(folder, int(data["pictures"]), str(data["sha256"]), seen)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the record of how {folder.name} was adapted cannot be read",
            code="adaptation-record",
            expected=f"{RECORD} and {PICTURES}, as skinret-adapt writes them",
            found=repr(error),
            cure="adapt the backbone again; without them nothing shows which pictures it has seen",
        ) from None
