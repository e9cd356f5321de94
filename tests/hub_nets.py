"""Tiny stand-ins of the hub's networks other than vision-language models, as `hub_models` has those.

Class, heads, image grid and kind of tokenizer are the real ones; depth and the width of a head are not.
"""

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers as hf
from PIL import Image

# As the real DeiT's file has it; transformers has renamed the class since.
DEIT_IMAGES = {
    "feature_extractor_type": "DeiTFeatureExtractor",
    "do_resize": True,
    "size": 256,
    "do_center_crop": True,
    "crop_size": 224,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
}
VIT_IMAGES = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def _vit(kind: str, n_heads: int, images: dict[str, Any]) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        config = getattr(hf, f"{kind}Config")(
            hidden_size=4 * n_heads,
            intermediate_size=16 * n_heads,
            num_hidden_layers=9,  # of 12: what a chapter tries grows with 2 to the number of blocks
            num_attention_heads=n_heads,
            num_labels=1000,
            initializer_range=0.2,
        )
        getattr(hf, f"{kind}ForImageClassification")(config).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(images))

    return save


NETS: dict[str, Callable[[Path], None]] = {
    "facebook/deit-tiny-patch16-224": _vit("ViT", 3, DEIT_IMAGES),
    "facebook/deit-small-patch16-224": _vit("ViT", 6, DEIT_IMAGES),
    "facebook/deit-base-patch16-224": _vit("ViT", 12, DEIT_IMAGES),
    "another/deit": _vit("DeiT", 3, DEIT_IMAGES),  # the same architecture in transformers' class for it
    "google/vit-base-patch16-224": _vit("ViT", 12, VIT_IMAGES),
}
"""Hub id -> what saves its stand-in."""


@cache
def folder(name: str) -> str:
    """A folder with the stand-in of a hub model, in the ordinary format."""
    torch.manual_seed(0)
    path = Path(mkdtemp(prefix=name.replace("/", "--") + "-"))
    NETS[name](path)
    return str(path)


@cache
def images(n_classes: int = 10, n: int = 60, column: str = "image") -> str:
    """Photographs in the schema of imagenette (or CIFAR-10, `img`); their brightness tells the class."""
    path, rng = Path(mkdtemp(prefix="images-")), np.random.default_rng(0)
    for split in ("train", "test"):
        labels = np.arange(n) % n_classes
        cells = []
        for label in labels:
            pixels = 200 * label // n_classes + rng.integers(0, 20, size=(160, 213, 3))
            file = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(file, format="JPEG")
            cells.append({"bytes": file.getvalue(), "path": None})
        pd.DataFrame({column: cells, "label": labels}).to_parquet(path / f"{split}-00000-of-00001.parquet")
    return str(path)
