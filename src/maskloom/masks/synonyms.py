"""Names of masks in other libraries and papers, and maskloom's names; `parse` suggests them for unknown words."""

import difflib
import re
from collections.abc import Iterable

_WORDS = {
    "causal": "autoregressive decoder future is_causal left_to_right look_ahead lower_triangular no_peek square_subsequent "
    "subsequent tril unidirectional",
    "anticausal": "backward reverse_causal right_to_left triu upper_triangular",
    "causal_lower_right(..., ...)": "bottom_right causal_bottom_right causal_from_bottom_right lower_right "
    "lower_triangular_from_bottom_right",
    "everything": "all bidirectional dense encoder full global_full no none noop unmasked",
    "nothing": "empty hidden masked zero",
    "window(back=...)": "attention_window banded causal_window local local_causal local_window mistral rolling sliding "
    "sliding_causal sliding_window sliding_window_causal swa window_size windowed",
    "window(back=..., ahead=...)": "both_sides symmetric_window",
    "window(back=0)": "diagonal eye identity itself self",
    "window_both_ways(...)": "bidirectional_window longformer_local sliding_window_bidirectional",
    "window(back=...) | sinks(...)": "a_shape lambda lm_infinite streaming streaming_llm",
    "window_both_ways(...) | global_tokens(...)": "global_sliding_window longformer",
    "window_both_ways(...) | global_tokens(...) | random_blocks(...)": "bigbird big_bird",
    "sinks(...)": "attention_sink attention_sinks initial_tokens sink start_tokens",
    "dilated(back=..., step=...)": "atrous dilated_sliding_window dilated_window dilation skip stride_window",
    "strided(...)": "sparse_transformer_strided stride",
    "fixed(...)": "sparse_transformer_fixed",
    "chunked(...)": "block block_local blocks blockwise chunk chunks local_block local_blocks",
    "causal & chunked(...)": "chunked_causal llama4",
    "causal | chunked(...)": "blockwise_causal causal_blocks frame_causal semi_autoregressive",
    "causal & documents(offsets=[...])": "block_causal block_diagonal_causal causal_document doc_causal document_causal "
    "packed_causal packed_causal_doc",
    "documents(offsets=[...])": "block_diagonal cu_seqlens doc doc_id docs document document_id document_ids packed packed_document "
    "packed_sequence packing ragged sample sample_packing seq_idx segment segment_id segment_ids segments sequence_id "
    "sequence_ids varlen",
    "documents_lower_right(...)": "block_diagonal_causal_from_bottom_right block_diagonal_causal_lower_right "
    "varlen_causal",
    "documents(offsets=[...], kv_offsets=[...])": "cross_documents cu_seqlens_k packed_cross",
    "from_edges(...)": "adjacency csr edge_index edges graph",
    "causal | prefix(...)": "prefix_causal prefix_lm prefixlm t5_prefix unilm",
    "prefix(...)": "prefix_length prompt",
    "global_tokens(...)": "cls cls_token global global_token",
    "random_blocks(block_size=..., blocks=..., length=...)": "rand random random_block sparse_random",
    "lengths([...])": "attention attn kv_len kv_length left_padding length pad pads seq_len seq_lens seqlen seqlens sequence_length "
    "sequence_lengths src_key_padding tgt_key_padding valid valid_len valid_length",
    "shared_prefix(..., [...])": "common_prefix grpo prefix_sharing prefix_tree rollouts",
    "turns(offsets=[...], visible=...)": "conversation conversations dialogue multi_turn roles",
    "shifted(..., q_offset=...)": "decode decoding offset offsets shift",
    "per_head([...])": "by_head heads multi_head",
    "per_batch([...])": "batched by_batch",
    "repeat_heads(..., ...)": "gqa mqa repeat_kv",
    "transposed(...)": "transpose",
    "neighbourhood(..., ...)": "na1d na2d na3d natten neighborhood neighbor neighbors neighbour",
    "grid_window(..., ...)": "local_2d patch_window window_2d window2d",
    "axial(..., axis=...)": "axis column columns criss_cross row rows",
    "shifted_windows(..., ...)": "shifted_window swin swin_window window_partition",
    "grid_tiles(..., ..., ...)": "sliding_tile sliding_tile_attention sta tile tile_window tiles",
    "morton(...)": "hilbert z_order zorder",
    "tree([...])": "eagle medusa speculative token_tree tree_verification",
    "beams([...])": "beam beam_search",
    "block_diffusion(..., ...)": "bd3lm bd3lms diffusion mdlm",
    "mixed_modal([...])": "gemma3 image images mixed_modality multimodal paligemma transfusion vision",
    "flamingo([...], tokens_per_media=...)": "cross_image interleaved openflamingo",
    "spatial(..., ...)": "frame frames intra_frame svg",
    "temporal(..., ...)": "across_frames inter_frame time",
    "top_k_blocks([...], ..., key_blocks=...)": "moba nsa selected selected_blocks seer topk topk_blocks top_k",
    "a & b": "and and_masks intersection",
    "a | b": "or or_masks union",
    "a ^ b": "xor xor_masks",
    "~a": "complement inverse invert not",
}
SYNONYMS: dict[str, str] = {word: meaning for meaning, words in _WORDS.items() for word in words.split()}
"""A word in snake case, without the ending "mask" or "attention", and the text to write for it."""

_SCORE_MODS = """
    alibi alibi_bias bias compose logit_softcap logit_soft_capping relative_bias relative_position relative_positional rel_bias
    rel_pos score_mod shifted_score soft_cap softcap softcapping t5_bias t5_buckets tanh_softcap
"""
SCORE_MODS = frozenset(_SCORE_MODS.split())
"""Words for score mods, which change scores and hide nothing."""

_OF_TENSORS = """
    as_mask attn_mask bool_mask create_padding_mask dense_mask from_blocks from_dense from_edges key_padding key_padding_mask
    padding padding_mask real table
"""
OF_TENSORS = frozenset(_OF_TENSORS.split())
"""Masks that need a tensor or a function, which a text cannot hold."""


def suggestion(word: str, names: Iterable[str]) -> str | None:
    """A suggestion for an unknown word, as the end of an error message; None if nothing is close."""
    plain = _plain(word)
    if {word, plain} & SCORE_MODS:
        return f"{word} changes scores and hides nothing: it goes to score_mod="
    if {word, plain} & OF_TENSORS:
        named = "parse(text, {'pads': padding(pads)})"
        return f"a text holds no tensor: write lengths([...]), or give the mask a name, as {named} does"
    if plain in SYNONYMS:
        return f"is {SYNONYMS[plain]} meant?"
    names = list(names)
    if plain in names:
        return f"is {plain} meant?"
    close = difflib.get_close_matches(word, [*names, *SYNONYMS, *SCORE_MODS], n=1)
    close = close or difflib.get_close_matches(plain, [*names, *SYNONYMS], n=1)
    if not close:
        return None
    return f"is {close[0]} meant?" if close[0] in names else suggestion(close[0], names)


def _plain(word: str) -> str:
    """A word in snake case, without the prefixes and suffixes of other libraries."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word).lower().strip("_")
    before, behind = (
        r"^(?:generate|create|make|get|build)_",
        r"_(?:masks?|attention|attn|mod|function|overlay|pattern|bias)$",
    )
    while (shorter := re.sub(behind, "", re.sub(before, "", snake))) != snake:
        snake = shorter
    return snake
