"""skinret-train, also as `python -m skinret_training`; without the extra train it says so."""

from skinret_infer.cli.common import load_command


def main() -> None:
    """Run skinret-train."""
    load_command("skinret_training.cli", "skinret-train", "train")()


if __name__ == "__main__":
    main()
