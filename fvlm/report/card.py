"""The model card: what a model hub, or an MLflow run, shows of a trained model."""

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fvlm.statistics.evaluation import Evaluation
from fvlm.statistics.tables import arm_rows, figure, ratio_cells, ratio_rows
from fvlm.statistics.verdict import describe, describe_power


def render_card(
    config: dict[str, Any],
    *,
    evaluation: Evaluation,
    training: dict[str, Any],
    commit: str,
    versions: dict[str, str],
) -> str:
    """The card as Markdown with a hub's header.

    config: of the saved model; training: metrics/train.json.
    """
    environment = Environment(
        loader=PackageLoader("fvlm.report", "."),
        autoescape=False,  # Markdown, not HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    parts = config["provenance"]
    return environment.get_template("card.md").render(
        statement=describe(evaluation.held_out),
        power=describe_power(evaluation.held_out),
        ratios=ratio_rows(evaluation),
        arms=arm_rows(evaluation),
        figure=figure,
        ratio_cells=ratio_cells,
        training=training,
        input=config["input"],
        text=config["model"]["text"],
        token_shape=config["token_shape"],
        latent_shape=config["latent_shape"],
        layer=parts["dino"]["layer"],
        parts=parts,
        weights=config["weights_sha256"],
        commit=commit,
        versions=versions,
        params=json.dumps(config["model"], indent=2),
    )
