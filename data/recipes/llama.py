"""The small Llama of all organisms that read words alone."""

from transformers import LlamaConfig, LlamaForCausalLM


def small_llama(
    n_words: int,
    *,
    width: int,
    blocks: int,
    heads: int,
    positions: int,
    spread: float,
    pad: int,
    bos: int,
    eos: int | None,
    mlp: int | None = None,
    tied: bool = True,
) -> LlamaForCausalLM:
    """An untrained Llama.

    Args:
        n_words: of the vocabulary.
        width: of the residual stream.
        blocks: their number.
        heads: of each block.
        positions: the longest sequence, in tokens.
        spread: standard deviation of the initial weights; narrow nets hardly start with the usual 0.02.
        pad: the word that fills rows.
        bos: the word before every text.
        eos: the word after a text; None if there is none.
        mlp: width of the MLPs; by default twice that of the residual stream.
        tied: whether words are read and written with the same vectors.
    """
    config = LlamaConfig(
        vocab_size=n_words,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        intermediate_size=mlp or 2 * width,
        max_position_embeddings=positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=spread,
        tie_word_embeddings=tied,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    return LlamaForCausalLM(config)
