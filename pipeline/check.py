"""Check all of params.yaml, every section and the rules between them: python -m pipeline.check."""

from fvlm.params import PARAMS, load_params
from pipeline.preset import Sections
from pipeline.stage import run


def main() -> None:
    """Load everything; faults are reported together."""
    load_params(Sections)
    print(f"{PARAMS} is valid")


if __name__ == "__main__":
    run(main)
