"""Models of transformers by hub name or local folder: what vision and text encoders have in common."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from skinret_infer.errors import InputError

ATTENTION = "eager"  # the exporter does not support Swin's fused attention with a dynamic batch


def read_config(name: str, kind: str) -> Any:
    """Return the configuration of a model. Raises InputError if there is none that transformers knows.

    kind : "vision" or "text", for the message.
    """
    file = Path(name) / "config.json"
    try:
        if file.is_file() and "model_type" not in (values := json.loads(file.read_text("utf-8"))):
            raise ValueError(f"config.json with {', '.join(sorted(values)[:4])}, but no model_type")
        return AutoConfig.from_pretrained(name, **only_local(name))
    except (OSError, ValueError) as error:
        raise load_error(name, f"{kind} model", error) from None


def plain_config(config: Any) -> dict[str, Any]:
    """Return a configuration as plain values, from which `AutoConfig.for_model` builds it again."""
    values = json.loads(json.dumps(config.to_dict(), default=str))
    return {
        k: v
        for k, v in values.items()
        if k not in ("_name_or_path", "transformers_version", "architectures", "dtype")
    }


def only_local(name: str) -> dict[str, bool]:
    """Return the option that keeps transformers from asking the hub about a local folder."""
    return {"local_files_only": True} if Path(name).is_dir() else {}


def load_error(name: str, kind: str, error: Exception) -> InputError:
    """Return the error to raise for a model that cannot be loaded."""
    return InputError(
        f"the {kind} {name!r} cannot be loaded",
        code="backbone",
        expected="a name on the model hub, with network access, or a local folder of the model",
        found=" ".join(str(error).split())[:200] or type(error).__name__,
        cure="download the model once and give its folder, as timm:FOLDER if timm wrote it",
    )
