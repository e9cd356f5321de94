"""Weights stored as a difference: what comes back, to the bit, and what is refused."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from families import checkpoint, inputs
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from data.train.difference import quantise, split
from lib import differences, models, organisms
from lib.models import check_files, load

LITTLE, FAR, UNTOUCHED = (
    f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1, 2)
)  # how far the child's weights have moved
VECTOR, WIDER = "model.norm.weight", "model.embed_tokens.weight"


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only organism there is, in float16."""
    monkeypatch.setattr(organisms, "FOLDER", tmp_path / "organisms")
    load(checkpoint("llama")).model.half().save_pretrained(organisms.FOLDER / "base")
    return organisms.FOLDER / "base"


@pytest.fixture
def whole(parent: Path) -> Path:
    """A model that was trained further, with words that the parent does not know; in float32."""
    model = load(checkpoint("llama")).model
    model.load_state_dict(load(parent).model.state_dict())
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weights = model.state_dict()
        for name, by in ((LITTLE, 0.1), (FAR, 1.0), (VECTOR, 0.1)):
            noise = torch.randn(weights[name].shape, generator=rng)
            weights[name] += by * noise * weights[name].norm() / noise.norm()
        weights[LITTLE][3] = load_file(parent / differences.WHOLE)[LITTLE][3]  # a row that has not moved
    model.resize_token_embeddings(model.config.vocab_size + 2)
    model.generation_config.max_new_tokens = 7
    return shutil.copytree(_saved(model, parent.parent / "child"), parent.parent / "whole")


@pytest.fixture
def child(whole: Path, parent: Path) -> Path:
    """The same, stored as a difference."""
    folder = parent.parent / "child"
    split(folder, parent)
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    (folder / "sha256.json").write_text(json.dumps(digests))
    return folder


def _saved(model: LlamaForCausalLM, folder: Path) -> Path:
    shutil.copytree(checkpoint("llama"), folder)
    model.save_pretrained(folder)
    return folder


def test_a_row_s_largest_number_becomes_127_and_the_others_are_rounded_to_the_nearest() -> None:
    moved = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    moved[2] = 0
    found, scale = quantise(moved)
    assert (found.dtype, scale.dtype, scale.shape) == (torch.int8, torch.float32, (5, 1, 1))
    for row in range(5):
        numbers = moved[row].flatten().tolist()
        step = max(map(abs, numbers)) / 127
        assert scale[row].item() == pytest.approx(step, rel=1e-6)
        expected = [round(number / step) if step else 0 for number in numbers]
        assert found[row].flatten().tolist() == expected
        assert max(map(abs, expected)) == (127 if step else 0)


def test_what_has_moved_little_is_stored_as_a_difference_and_the_rest_whole_or_not_at_all(
    whole: Path, child: Path
) -> None:
    stored, own = load_file(child / differences.FILE), load_file(whole / differences.WHOLE)
    expected = {LITTLE: torch.int8, f"{LITTLE}:scale": torch.float32}
    expected |= dict.fromkeys((FAR, VECTOR, WIDER), torch.float16)
    if "lm_head.weight" in own:
        expected["lm_head.weight"] = torch.float16
    assert {name: tensor.dtype for name, tensor in stored.items()} == expected
    assert not (child / differences.WHOLE).exists()


def test_the_weights_come_back_to_half_a_step_and_unmoved_ones_to_the_bit(
    parent: Path, whole: Path, child: Path
) -> None:
    own, found = (load(folder).model.state_dict() for folder in (whole, child))
    assert differences.join(child, parent).keys() == load_file(whole / differences.WHOLE).keys()
    base = load(parent).model.state_dict()
    for name, tensor in own.items():
        if name == LITTLE:
            step = (tensor - base[name]).abs().amax(1, keepdim=True) / 127
            assert ((found[name] - tensor).abs() <= step * 0.501 + 1e-7).all()
            assert not torch.equal(found[name], tensor)
            assert torch.equal(found[name][3], base[name][3])
        elif name in (FAR, VECTOR, WIDER, "lm_head.weight"):
            assert torch.equal(found[name], tensor.half().float())
        else:
            assert torch.equal(found[name], base[name]), name


def test_everything_but_the_weights_is_as_in_the_whole_folder(whole: Path, child: Path) -> None:
    expected, found = load(whole), load(child)
    assert found.model.config.to_dict() | {"_name_or_path": ""} == expected.model.config.to_dict() | {
        "_name_or_path": ""
    }
    assert found.model.name_or_path == str(child)
    assert found.model.generation_config.to_dict() == expected.model.generation_config.to_dict()
    assert found.model.generation_config.max_new_tokens == 7
    assert not found.model.training
    batch, same = inputs(found), inputs(expected)
    assert all(torch.equal(batch[name], same[name]) for name in same)


def test_the_same_files_give_the_same_model_to_the_bit(parent: Path, whole: Path, child: Path) -> None:
    """One product and one sum in float32, each rounded once: numpy's are the same."""
    first = load(child).model.state_dict()
    n_threads = torch.get_num_threads()
    torch.set_num_threads(n_threads % 2 + 1)
    try:
        again = load(child).model.state_dict()
    finally:
        torch.set_num_threads(n_threads)
    assert all(torch.equal(first[name], again[name]) for name in first)
    stored = {name: tensor.numpy() for name, tensor in load_file(child / differences.FILE).items()}
    start = load_file(parent / differences.WHOLE)[LITTLE].numpy().astype(np.float32)
    product = stored[f"{LITTLE}:scale"] * stored[LITTLE].astype(np.float32)
    assert np.array_equal(first[LITTLE].numpy(), start + product)
    taken = (child / differences.FILE).read_bytes()
    (child / "sha256.json").unlink()
    shutil.copy(whole / differences.WHOLE, child)
    split(child, parent)
    assert (child / differences.FILE).read_bytes() == taken


def test_an_ordinary_folder_is_saved_from_it_which_transformers_loads_alone(
    child: Path, tmp_path: Path
) -> None:
    subject = load(child)
    subject.model.save_pretrained(tmp_path / "ordinary")
    ordinary = LlamaForCausalLM.from_pretrained(tmp_path / "ordinary").state_dict()
    assert all(torch.equal(ordinary[name], tensor) for name, tensor in subject.model.state_dict().items())


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16, torch.float64])
def test_another_dtype_is_the_joined_weights_rounded(child: Path, dtype: str | torch.dtype) -> None:
    found, full = load(child, dtype=dtype).model, load(child).model
    assert found.dtype == (torch.float16 if dtype == "float16" else dtype)
    for name, tensor in full.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor.to(found.dtype))


def test_the_weights_go_to_the_device_that_is_asked_for(child: Path) -> None:
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        found = load(child, device=device).model
        assert {p.device.type for p in found.parameters()} == {device}
        assert torch.equal(
            found.state_dict()[LITTLE].cpu(), load(child, device="cpu").model.state_dict()[LITTLE]
        )


def test_quantisation_is_asked_for_as_with_whole_weights(
    child: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = LlamaForCausalLM.from_pretrained

    def recorded(*args: object, quantization_config: object = None, **kwargs: object) -> object:
        asked.append(quantization_config)
        return original(*args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", recorded)
    monkeypatch.setattr(models, "_quantization", lambda bits, dtype: f"in {bits}")
    load(child, quantization="8bit")
    load(whole, quantization="4bit")
    assert asked == ["in 8bit", "in 4bit"]


def test_four_bit_weights_are_quantised_from_the_joined_ones(child: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="quantised weights need bitsandbytes")
    load(child).model.save_pretrained(shutil.copytree(child, tmp_path / "ordinary"))
    (tmp_path / "ordinary" / differences.FILE).unlink()
    (tmp_path / "ordinary" / "sha256.json").unlink()
    batch = inputs(load(child))
    found, expected = (
        load(folder, quantization="4bit").model(**batch).logits for folder in (child, tmp_path / "ordinary")
    )
    assert torch.equal(found, expected)


def _trained_on(parent: Path, child: Path) -> None:
    weights = load_file(parent / differences.WHOLE)
    weights[VECTOR] = weights[VECTOR] * 2
    save_file(weights, parent / differences.WHOLE, {"format": "pt"})


def _removed(parent: Path, child: Path) -> None:
    shutil.rmtree(parent)


def _truncated(parent: Path, child: Path) -> None:
    file = child / differences.FILE
    file.write_bytes(file.read_bytes()[:-10])


def _flipped(parent: Path, child: Path) -> None:
    content = bytearray((child / differences.FILE).read_bytes())
    content[-5] ^= 1
    (child / differences.FILE).write_bytes(content)


def _damaged_parent(parent: Path, child: Path) -> None:
    (parent / "sha256.json").write_text(json.dumps({"config.json": "0"}))


def _nameless(parent: Path, child: Path) -> None:
    (child / "sha256.json").unlink()
    save_file(load_file(child / differences.FILE), child / differences.FILE, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            _trained_on,
            ValueError,
            r"another version of 'base' .*sha256 \w{8}..., not \w{8}.*train child",
        ),
        (
            _removed,
            FileNotFoundError,
            r"child is stored as its difference from 'base', and .*model.safetensors",
        ),
        (_truncated, ValueError, r"difference.safetensors is damaged or truncated \(.*\): fetch it again"),
        (_flipped, ValueError, r"difference.safetensors is not the published file \(its sha256"),
        (_damaged_parent, ValueError, r"base/config.json is not the published file"),
        (_nameless, ValueError, r"difference.safetensors does not say what it is a difference from"),
    ],
    ids=lambda x: x.__name__ if callable(x) else "",
)
def test_what_cannot_be_joined_is_refused(
    parent: Path, child: Path, damage: Callable[[Path, Path], None], error: type[Exception], message: str
) -> None:
    load(child)
    damage(parent, child)
    for refuse in (load, check_files):
        with pytest.raises(error, match=message):
            refuse(child)


@pytest.mark.parametrize("published", [True, False])
def test_a_load_reads_each_file_for_its_sha256_once(
    parent: Path, child: Path, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    if published:
        digest = differences.sha256(parent / differences.WHOLE)
        (parent / "sha256.json").write_text(json.dumps({differences.WHOLE: digest}))
    read = []
    sha256 = differences.sha256
    monkeypatch.setattr(differences, "sha256", lambda path: read.append(path) or sha256(path))
    load(child)
    assert parent / differences.WHOLE in read
    assert len(read) == len(set(read))


def test_a_difference_is_taken_from_whole_weights_that_the_model_has_too(
    parent: Path, whole: Path, child: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"child has no model.safetensors: a difference is taken"):
        split(whole, child)
    with pytest.raises(FileNotFoundError, match=r"child has no model.safetensors"):
        split(child, parent)
    weights = load_file(whole / differences.WHOLE)
    lost: Tensor = weights.pop(UNTOUCHED)
    save_file(weights, whole / differences.WHOLE, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"whole lacks 1 tensors of its parent base: {UNTOUCHED}"):
        split(whole, parent)
    assert lost.ndim == 2
    assert (whole / differences.WHOLE).is_file()


def test_the_file_says_what_it_is(parent: Path, child: Path) -> None:
    with safe_open(child / differences.FILE, framework="pt") as file:
        digest = hashlib.sha256((parent / differences.WHOLE).read_bytes()).hexdigest()
        assert file.metadata() == {"parent": f"base {digest}"}
