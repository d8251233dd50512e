"""skinret, as `python -m skinret_infer`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="skinret")
