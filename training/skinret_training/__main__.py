"""skinret-train, also as `python -m skinret_training`, and skinret-adapt. Both need the extra `train`."""

from skinret_infer.cli.common import load_command


def main() -> None:
    """Run skinret-train."""
    load_command("skinret_training.cli", "skinret-train", "train")()


def adapt() -> None:
    """Run skinret-adapt."""
    load_command("skinret_training.adaptation.cli", "skinret-adapt", "train")()


if __name__ == "__main__":
    main()
