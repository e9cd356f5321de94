"""Models: `load` one by name, and ask it for its dimensions and inputs.

For example:

    vit = load("digits-vit")                            # an organism of this book
    subject = load("llava-hf/llava-1.5-7b-hf")          # a model of the Hugging Face hub
    inputs = subject.encode(["What is left of the red star?"], images=[image])
    subject.model.generate(**inputs)
"""

import difflib
import importlib.util
import json
import zlib
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from lib import differences, organisms, packaged
from lib.checks import checked
from lib.encode import Images, Picture, Spans, Text, encode, spans
from lib.sites import Layout, towers

FAST_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")  # as written by transformers 5 and 4
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Subject:
    """A model under study, with what turns texts and images into its inputs.

    `load` makes one; `Subject(model)` makes one around a network that is in memory already. A model with two
    towers (CLIP, SigLIP, vision-language models) is seen through its text tower; `subject.tower("vision")` is
    the same model seen through the other one: dimensions, layers and sites are then that tower's.

    Attributes:
        model: the transformers model, to be called as ever.
        processor: tokenizer, image processor or both.
        tokenizer: the processor's tokenizer.
        tower_name: "text" or "vision".
        layout: where the tower's sites are.
        n_layers: number of the tower's blocks.
        n_heads: number of query heads in a block.
        n_kv_heads: number of heads for keys and values.
        d_model: width of the residual stream.
        d_head: width of one head.
        image_token_ids: ids of the tokens that stand for image (or video) features in its input.
        n_channels: of the images that it reads: 3, or 1 for grey.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        tower: str | None = None,
    ) -> None:
        """See the class.

        Raises:
            LookupError: the model's blocks fit no known architecture, it has no such tower or several of
                them, or it is an encoder-decoder.
        """
        self.model = model
        self.processor: Any = tokenizer if processor is None else processor
        if isinstance(processor, PreTrainedTokenizerBase):
            tokenizer = processor
        self.tokenizer: Any = tokenizer or getattr(processor, "tokenizer", None)
        found = towers(model)
        self.tower_name = tower or next(iter(found))
        layouts = found.get(self.tower_name, f"it has {', '.join(found)}")
        if isinstance(layouts, str):
            others = [name for name in found if name != self.tower_name and not isinstance(found[name], str)]
            hint = f'; Subject(model, tower="{others[0]}") shows its other tower' if others else ""
            raise LookupError(f"no {self.tower_name} tower in {type(model).__name__}: {layouts}{hint}")
        self.layout: Layout = checked(model, layouts)
        self.n_layers = len(self.layout.blocks)
        self.n_heads, self.n_kv_heads = self.layout.n_heads, self.layout.n_kv_heads
        self.d_model, self.d_head = self.layout.d_model, self.layout.d_head
        token_ids = [getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video")]
        self.image_token_ids = [i for i in token_ids if i is not None]
        vision = found.get("vision")
        images: Any = vision[0].owner.config if isinstance(vision, list) else None
        self.n_channels: int = getattr(images, "num_channels", 3)

    def tower(self, name: Literal["text", "vision"]) -> "Subject":
        """The same model, seen through its "text" or "vision" tower."""
        return Subject(self.model, self.processor, tokenizer=self.tokenizer, tower=name)

    @property
    def device(self) -> torch.device:
        """Where the model's first weights are, and so where inputs must be."""
        return self.model.device

    def encode(
        self,
        texts: Text | Sequence[Text] | None = None,
        images: Picture | Images = None,
        *,
        chat: bool | None = None,
    ) -> dict[str, Tensor]:
        """Inputs for `model(**inputs)` and `model.generate(**inputs)`: see `lib.encode.encode`."""
        return encode(self, texts, images, chat=chat)

    def spans(self, inputs: Mapping[str, Tensor]) -> Spans:
        """Which positions of its inputs are image tokens, text and padding: see `lib.encode.spans`."""
        return spans(self, inputs)


def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    quantization: Literal["8bit", "4bit"] | None = None,
    untrained: bool = False,
) -> Subject:
    """Loads a model: an organism of this book, a local folder, or a model of the Hugging Face hub.

    `name` is taken for, in this order: an organism, if `data/models` has a folder of that name; a local
    folder, if there is one or if it starts with `.`, `/` or `~`; a model that a package carries
    (`lib.packaged`: "smollm2"); a hub id.
    Weights are read from safetensors only, and no code that comes with a model is ever run.

    Args:
        name: organism, folder or hub id.
        dtype: "auto" is the checkpoint's own on a GPU, and float32 on a CPU.
        device: "auto" is a GPU if there is one (all of them, for a model that needs it), else the CPU.
        quantization: load the weights in 8 or 4 bits; needs the package bitsandbytes, and is slow on a CPU.
        untrained: load the model's untrained twin, which has learned nothing and is of the same scale: its
            weights are shuffled (`shuffle_weights`), in an order that the folder's name decides.

    Returns:
        The model in evaluation mode, with its tokenizer or processor.

    Raises:
        FileNotFoundError: there is no such folder, or it has no weights.
        ConnectionError: the hub cannot be reached, and the model is not in the local cache.
        PermissionError: the hub wants an accepted licence or a login for this model.
        LookupError: the hub has no such model; or its architecture is unknown.
        ValueError: the weights are damaged, incomplete, a pickle, the difference from another version of
            their parent, or have an adapter beside them; or a quantized model is asked for its twin.
        ImportError: bitsandbytes, or a package that the model's processor needs (torchvision for Pixtral's),
            is missing.
    """
    folder = _folder(name)
    config = _config(folder)
    if untrained and (quantization or getattr(config, "quantization_config", None)):
        raise ValueError(
            f"{name}: untrained=True shuffles the weights, and quantized ones are stored in blocks that "
            "share a scale: load it with quantization=None, from weights that are not quantized"
        )
    check_files(folder)
    if device == "auto":
        n_gpus = torch.cuda.device_count()
        device = "auto" if n_gpus > 1 else "cuda" if n_gpus else "cpu"
    if dtype == "auto" and str(device) == "cpu":
        dtype = torch.float32
    arguments: dict[str, Any] = {"dtype": dtype, "device_map": device}
    if quantization:
        arguments["quantization_config"] = _quantization(quantization, dtype)
    source: Path | None = folder
    if parent := differences.parent(folder, organisms.FOLDER):
        source, arguments["state_dict"] = None, differences.join(folder, parent)
        if (folder / "generation_config.json").is_file():
            arguments["generation_config"] = GenerationConfig.from_pretrained(folder, local_files_only=True)
    with _progress_bar(folder):
        model, report = _model_class(folder, config).from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **arguments,
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"{folder}: the weights lack {len(missing)} tensors that {type(model).__name__} needs: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    model.name_or_path = model.config.name_or_path = str(folder)
    if untrained:
        shuffle_weights(model, seed=zlib.crc32(folder.name.encode()))
    return Subject(model.eval(), _processor(folder, config))


@torch.no_grad()
def shuffle_weights(model: torch.nn.Module, seed: int = 0) -> None:
    """Makes a model its untrained twin, in place: the entries of each trained tensor change places at random.

    A claim that "holds" on the twin as well says something about the architecture or the pipeline, and
    nothing about what was learned. As in the randomisation test of Adebayo et al. (2018,
    arXiv:1810.03292) all of the model's weights go; each tensor keeps its distribution, not only the
    variance that Heap et al. (2025, arXiv:2501.17727) match: a freshly initialised network would differ
    in scale too, which many statistics notice. Tensors that are not trained, and buffers, stay.

    Args:
        model: any model whose weights are floating-point numbers; tied weights stay tied.
        seed: of the orders, one for each tensor.

    Raises:
        ValueError: some weights are not in memory, as when a model is larger than the GPUs.
    """
    if any(weights.is_meta for weights in model.parameters()):
        raise ValueError("weights that are offloaded cannot be shuffled: load the model where all of it fits")
    order = torch.Generator().manual_seed(seed)
    for weights in model.parameters():
        if weights.requires_grad:
            places = torch.randperm(weights.numel(), generator=order).to(weights.device)
            weights.copy_(weights.flatten()[places].view_as(weights))


def _folder(name: str | Path) -> Path:
    """The local folder of a model; fetched from the hub where needed."""
    text = str(name)
    if organism := organisms.folder(text):
        return organism
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if text in packaged.MODELS:
        return packaged.folder(text, from_hub=_folder)
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise FileNotFoundError(f"no folder {path} (a model is an organism, an existing folder, or a hub id)")
    close = difflib.get_close_matches(text, organisms.shipped(), n=3)
    hint = (
        f"did you mean {' or '.join(close)}?"
        if close
        else f"`data/models` has {len(organisms.shipped())} others"
    )
    try:
        path = Path(
            snapshot_download(
                text,
                allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"],
                ignore_patterns=["*/*", "consolidated*"],
                etag_timeout=10,
            )
        )
    except GatedRepoError as error:
        raise PermissionError(
            f"{text!r} is gated: accept its licence at https://huggingface.co/{text}, and run `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise LookupError(
            f"no model {text!r}: it is no organism ({hint}), no local folder, and the hub has no such model"
        ) from error
    except (OSError, HTTPError) as error:
        cause = str(error).split("\n")[0] or type(error).__name__
        raise ConnectionError(
            f"{text!r} is no organism ({hint}), no local folder and not in the local cache, and the hub "
            f"could not be asked for it: {cause}"
        ) from error
    if not any(path.glob("*.safetensors")):
        raise ValueError(f"{text!r} has no safetensors on the hub; pickled weights are not read")
    return path


def _config(folder: Path) -> PreTrainedConfig:
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder} has an adapter (adapter_config.json): transformers applies or ignores it, by whether "
            "peft is installed: remove its files, or save the merged model (peft: `merge_and_unload()`)"
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; it has {_listing(folder)}")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        try:
            kind = json.loads((folder / "config.json").read_text()).get("model_type")
        except ValueError:
            raise ValueError(f"{folder / 'config.json'} is no valid JSON") from error
        raise LookupError(
            f"{folder}: transformers {transformers.__version__} knows no `model_type` {kind!r}, which its "
            "config.json asks for; code that comes with a model is not run"
        ) from error


def check_files(folder: Path) -> None:
    """Checks that the weights are there, whole, and those that were published with the folder.

    Where they are stored as a difference, their parent's are checked too.

    Raises:
        FileNotFoundError: a file is missing, or the parent.
        ValueError: the weights are pickled or damaged, a file is not the published one, or the parent is of
            another version.
    """
    _check_folder(folder)
    if parent := differences.parent(folder, organisms.FOLDER):
        digest = _check_folder(parent).get(differences.WHOLE)
        differences.check_version(folder, digest or differences.sha256(parent / differences.WHOLE))


def _check_folder(folder: Path) -> dict[str, str]:
    """Checks one folder's files; the sha256 of those that its sha256.json lists."""
    weights = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        if missing := sorted(shards - {path.name for path in weights}):
            raise FileNotFoundError(
                f"{folder} lacks {len(missing)} of {len(shards)} weight files: {missing[0]}, ..."
            )
    elif not weights:
        if pickles := [path.name for pattern in PICKLES for path in folder.glob(pattern)]:
            raise ValueError(
                f"{folder} has pickled weights only ({', '.join(pickles)}), and a pickle can run any code: "
                "convert them to safetensors (`model.save_pretrained` in an environment you trust)"
            )
        raise FileNotFoundError(f"{folder} has no model.safetensors; it has {_listing(folder)}")
    for path in weights:
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or truncated ({error}): fetch it again") from error
    # safetensors checks a file's structure only: a flipped bit in the weights shows in the sha256 alone.
    checksums = folder / "sha256.json"
    published = json.loads(checksums.read_text()) if checksums.is_file() else {}
    for file, expected in published.items():
        path = folder / file
        if not path.is_file():
            raise FileNotFoundError(f"{folder} lacks {file}, which its sha256.json lists")
        if differences.sha256(path) != expected:
            raise ValueError(
                f"{path} is not the published file (its sha256 differs from sha256.json): delete it and "
                "fetch it again"
            )
    return published


@contextmanager
def _progress_bar(folder: Path) -> Iterator[None]:
    """Shows transformers' progress bar only for weights that take a while; else it is noise in a notebook."""
    shown = is_progress_bar_enabled()
    if sum(path.stat().st_size for path in folder.glob("*.safetensors")) < 1e9:
        disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"


def _model_class(folder: Path, config: PreTrainedConfig) -> Any:
    """The class that the checkpoint was saved from."""
    for name in config.architectures or []:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    raise LookupError(
        f"{folder}: transformers has no class {config.architectures} (`architectures` in config.json)"
    )


def _processor(folder: Path, config: PreTrainedConfig) -> Any:
    """Whatever turns texts and images into inputs; None if the folder has nothing of the kind."""
    files = {"tokenizer_config.json", "tokenizer.json", "preprocessor_config.json", "processor_config.json"}
    if not any((folder / file).is_file() for file in files):
        return None
    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    settings = folder / "tokenizer_config.json"
    if kind is not None:  # the configuration's own, unless the files name another (Pixtral's are LLaVA's)
        named = [json.loads(path.read_text()) for path in sorted(folder.glob("*processor_config.json"))]
        kind = getattr(transformers, ChainMap(*named).get("processor_class") or "", kind)
        kind = images_only(kind) if "video_processor" in kind.get_attributes() else kind
    elif settings.is_file() and json.loads(settings.read_text()).get("tokenizer_class") in FAST_TOKENIZERS:
        kind = PreTrainedTokenizerFast  # AutoTokenizer may rebuild it by the model's type, to other tokens
    else:
        kind = AutoProcessor
    processor = kind.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    tokenizer = getattr(processor, "tokenizer", processor)
    if isinstance(tokenizer, PreTrainedTokenizerBase) and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def images_only(processor: Any) -> Any:
    """A class of processors without its part for videos, which would need torchvision."""

    class ImagesOnly(processor):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in processor.get_attributes() if name != "video_processor"]

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: Any, **kwargs: Any) -> Any:
            args.insert(processor.get_attributes().index("video_processor"), None)  # SmolVLM's needs one
            return super().from_args_and_dict(args, processor_dict, **kwargs)

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            known = argument_name != "video_processor"
            return super().check_argument_for_proper_class(argument_name, argument) if known else None

    ImagesOnly.__name__ = processor.__name__
    return ImagesOnly


def _quantization(bits: str, dtype: str | torch.dtype) -> transformers.BitsAndBytesConfig:
    if bits not in ("8bit", "4bit"):
        raise ValueError(f"quantization={bits!r}: it is None, '8bit' or '4bit'")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(f"quantization={bits!r} needs bitsandbytes; install it: pip install bitsandbytes")
    if bits == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    # GPUs before Ampere (Colab's T4) have no units for bfloat16: whoever asks for float16 computes in it.
    compute = dtype if str(dtype).removeprefix("torch.") in ("float16", "bfloat16") else torch.bfloat16
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute)
