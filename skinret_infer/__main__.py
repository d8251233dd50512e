"""skinret, as `python -m skinret_infer`."""

from .cli.main import main

if __name__ == "__main__":
    main(prog_name="skinret")
