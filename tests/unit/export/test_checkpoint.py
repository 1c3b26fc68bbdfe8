"""Bad checkpoints: each its own error class and one sentence, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qwen3guard_contract.errors import (
    CheckpointError,
    CheckpointNotFound,
    CorruptFile,
    MissingTensor,
    ParityError,
    TokenizerMismatch,
    WrongArchitecture,
    WrongShape,
)
from qwen3guard_export import export
from qwen3guard_export.checkpoint import weight_files
from qwen3guard_export.checkpoint.checkpoint import EMBEDDING, open_checkpoint
from support.json_file import edit
from support.random_checkpoint import make, write_safetensors


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, "config.json", lambda data: data.update(values))


def file(name: str, content: bytes | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)

    return change


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return change


def tensor(name: str, value: Any = None) -> Callable[[Path], None]:
    """Drops a tensor, or puts `value` in its place."""

    def change(folder: Path) -> None:
        weights = open_checkpoint(str(folder)).weights
        kept = {key: weights.float32(key) for key in weights.tensors if key != name or value is not None}
        if value is not None:
            kept[name] = np.asarray(value, np.float32)
        makers: dict[str, tuple[tuple[int, ...], Callable[[], Any]]] = {
            key: (array.shape, partial(np.asarray, array)) for key, array in kept.items()
        }
        write_safetensors(folder / "model.safetensors", makers, "fp32")

    return change


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def tokenizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit(folder, "tokenizer.json", change)


def without_im_end(data: dict[str, Any]) -> None:
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != "<|im_end|>"]
    del data["model"]["vocab"]["<|im_end|>"]


K_PROJ = "model.layers.1.self_attn.k_proj.weight"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
BAD: dict[str, tuple[Callable[[Path], None], type[CheckpointError], str]] = {
    "no config": (file("config.json", None), CheckpointNotFound, "config.json"),
    "no weights": (file(WEIGHTS, None), CheckpointNotFound, "model.safetensors"),
    "pickle only": (only_pickle, CheckpointNotFound, "pytorch_model.bin"),
    "another model": (config(architectures=["LlamaForCausalLM"]), WrongArchitecture, "LlamaForCausalLM"),
    "no architecture": (config(architectures=None), WrongArchitecture, "None"),
    "yarn": (config(rope_scaling={"rope_type": "yarn", "factor": 4.0}), WrongArchitecture, "yarn"),
    "yarn as transformers 5 writes it": (config(rope_parameters={"rope_type": "yarn"}), WrongArchitecture, "yarn"),
    "attention bias": (config(attention_bias=True), WrongArchitecture, "attention_bias"),
    "sliding window": (config(use_sliding_window=True), WrongArchitecture, "sliding"),
    "rope nested by layer type": (
        config(rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "yarn", "factor": 4.0},
        }),
        WrongArchitecture, "rope_parameters is nested by layer type ('full_attention')",
    ),
    "rope nested and alike": (
        config(rope_parameters={"full_attention": {"rope_theta": 1e6}}), WrongArchitecture, "rope_parameters is nested",
    ),
    "a factor and no type": (
        config(rope_scaling={"factor": 4.0}), WrongArchitecture, "rope_scaling has 'factor' = 4.0 and no type",
    ),
    "a factor, no type, transformers 5": (
        config(rope_parameters={"rope_theta": 1e6, "factor": 2}), WrongArchitecture, "rope_parameters has 'factor'",
    ),
    "the older name of the type": (
        config(rope_scaling={"rope_type": "default", "type": "linear", "factor": 2.0}), WrongArchitecture, "'linear'",
    ),
    "a default with sections": (
        config(rope_scaling={"type": "default", "mrope_section": [16, 24, 24]}), WrongArchitecture, "mrope_section",
    ),
    "rope is text": (config(rope_scaling="yarn"), WrongArchitecture, "rope_scaling asks for 'yarn'"),
    "two thetas": (config(rope_parameters={"rope_theta": 5e5}), WrongArchitecture, "rope_theta as 500000.0"),
    "no theta": (config(rope_theta=0), WrongArchitecture, "rope_theta"),
    "theta is text": (config(rope_theta="1e6"), WrongArchitecture, "rope_theta"),
    "partial rotary": (config(partial_rotary_factor=0.5), WrongArchitecture, "partial_rotary_factor"),
    "partial rotary, transformers 5": (
        config(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.25}),
        WrongArchitecture, "rope_parameters has 'partial_rotary_factor'",
    ),
    "sliding layers": (
        config(layer_types=["full_attention", "sliding_attention"]), WrongArchitecture, "layer_types",
    ),
    "chunked layers": (
        config(layer_types=["chunked_attention", "full_attention"]), WrongArchitecture, "layer_types",
    ),
    "linear layers": (config(layer_types=["linear_attention"] * 2), WrongArchitecture, "layer_types"),
    "a type for three layers of two": (config(layer_types=["full_attention"] * 3), WrongArchitecture, "layer_types"),
    "a type for all layers": (config(layer_types="full_attention"), WrongArchitecture, "layer_types"),
    "tied is text": (config(tie_word_embeddings="false"), WrongArchitecture, "tie_word_embeddings"),
    "eps is negative": (config(rms_norm_eps=-1e-6), WrongArchitecture, "rms_norm_eps"),
    "quantized": (config(quantization_config={"quant_method": "fp8"}), WrongArchitecture, "quantization_config"),
    "compressed": (config(compression_config={"format": "pack"}), WrongArchitecture, "compression_config"),
    **{
        f"{name} is {value}": (config(**{name: value}), WrongArchitecture, name)
        for name, value in {
            "mlp_bias": True, "rope_local_base_freq": 10000.0, "attn_logit_softcapping": 50.0, "logit_scale": 0.0625,
            "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256, "embedding_multiplier": 12.0,
            "num_experts": 8, "residual_multiplier": 0.22, "logits_scaling": 8.0, "use_qk_norm": False,
            "use_bidirectional_attention": True, "is_causal": False, "scale_attn_weights": False,
            "no_rope_layers": [1, 0], "attention_chunk_size": 8192, "sliding_window_pattern": 6,
            "pruned_heads": {"0": [1]}, "attn_output_gate": True, "hidden_activation": "gelu", "rotary_pct": 0.5,
        }.items()
    },
    "a bias": (tensor("model.layers.0.self_attn.q_proj.bias", np.zeros(64)), WrongArchitecture, "q_proj.bias"),
    "LoRA": (
        tensor("model.layers.0.self_attn.q_proj.lora_A.weight", np.zeros((4, 64))),
        WrongArchitecture, "q_proj.lora_A.weight' of a LoRA adapter: merge it into the weights first.",
    ),
    "LoRA beside": (file("adapter_config.json", b"{}"), WrongArchitecture, "merge it into the weights first"),
    "a layer more": (
        tensor("model.layers.2.mlp.up_proj.weight", np.zeros((96, 64))),
        WrongArchitecture, "'model.layers.2.mlp.up_proj.weight', but config.json says 2 layers",
    ),
    "another head": (tensor("lm_head.weight", np.ones((300, 64))), WrongArchitecture, "lm_head.weight differs from"),
    "a head of another shape": (tensor("lm_head.weight", np.ones((3, 64))), WrongArchitecture, "lm_head.weight"),
    "a tensor of nothing": (tensor("score.weight", np.zeros((2, 64))), WrongArchitecture, "'score.weight'"),
    "a head of Stream": (tensor("risk_level_head.weight", np.zeros((3, 32))), WrongArchitecture, "risk_level_head"),
    "heads that do not divide": (config(num_key_value_heads=3), WrongArchitecture, "4 query heads"),
    "no layers": (config(num_hidden_layers=0), WrongArchitecture, "num_hidden_layers"),
    "size is text": (config(hidden_size="64"), WrongArchitecture, "hidden_size"),
    "eps is text": (config(rms_norm_eps="small"), WrongArchitecture, "config.json"),
    "config is broken": (file("config.json", b'{"architectures": ['), CorruptFile, "config.json"),
    "config is a list": (file("config.json", b"[]"), CorruptFile, "config.json"),
    "missing tensor": (tensor(K_PROJ), MissingTensor, K_PROJ),
    "wrong shape": (tensor(K_PROJ, np.zeros((8, 64))), WrongShape, "[8, 64]; config.json requires [32, 64]"),
    "config of another size": (config(hidden_size=128), WrongShape, "[300, 64]"),
    "NaN": (tensor("model.norm.weight", np.full(64, np.nan)), CorruptFile, "model.norm.weight"),
    "truncated": (cut(WEIGHTS, 0.6), CorruptFile, WEIGHTS),
    "truncated header": (cut(WEIGHTS, 0.001), CorruptFile, WEIGHTS),
    "zero bytes": (file(WEIGHTS, b""), CorruptFile, WEIGHTS),
    "garbage": (file(WEIGHTS, bytes(range(256)) * 9), CorruptFile, WEIGHTS),
    "header is no JSON": (file(WEIGHTS, (20).to_bytes(8, "little") + b"x" * 40), CorruptFile, WEIGHTS),
    "tensor without offsets": (
        file(WEIGHTS, (9).to_bytes(8, "little") + b'{"a": {}}'), CorruptFile, WEIGHTS,
    ),
    "index without map": (file("model.safetensors.index.json", b"{}"), CorruptFile, "weight_map"),
    "index leads outside": (
        file("model.safetensors.index.json", b'{"weight_map": {"a": "../x"}}'), CorruptFile, "../x",
    ),
    "shard absent": (
        file("model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}'), CorruptFile, "b.safetensors",
    ),
    "no tokenizer": (file("tokenizer.json", None), TokenizerMismatch, "tokenizer.json"),
    "tokenizer is no JSON": (file("tokenizer.json", b"\xff\xfe"), TokenizerMismatch, "tokenizer.json"),
    "tokenizer is empty": (file("tokenizer.json", b"{}"), TokenizerMismatch, "vocabulary"),
    "tokenizer too large": (
        tokenizer(lambda data: data["model"]["vocab"].update(extra=300)), TokenizerMismatch, "300 ('extra')",
    ),
    "no im_end": (tokenizer(without_im_end), TokenizerMismatch, "<|im_end|>"),
    "no chat template": (
        lambda folder: edit(folder, "tokenizer_config.json", lambda data: data.pop("chat_template")),
        TokenizerMismatch, "chat template",
    ),
    "tokenizer config is broken": (file("tokenizer_config.json", b"{"), CorruptFile, "tokenizer_config.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_checkpoint_has_its_error_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    spoil, error, words = BAD[name]
    checkpoint = make(tmp_path / "checkpoint", "gen", layers=2)
    spoil(checkpoint)
    with pytest.raises(error) as caught:
        export(str(checkpoint), tmp_path / "models", say=lambda _: None)
    assert type(caught.value) is error
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "models").exists()


HARMLESS: dict[str, list[Any]] = {
    "quantization_config": [None, {}],
    "rope_scaling": [None, {}, {"rope_type": "default"}, {"type": "default", "factor": None}],
    "rope_parameters": [None, {"rope_theta": 1e6}, {"rope_type": "default", "partial_rotary_factor": 1.0}],
    "layer_types": [None, ["full_attention"] * 2],
    "sliding_window": [4096, None],
    "max_window_layers": [28],
    "attention_dropout": [0.1],
    "partial_rotary_factor": [None, 1, 1.0],
    "mlp_bias": [False, None],
    "logit_scale": [1.0],
    "num_experts": [0],
    "is_causal": [True],
    "use_qk_norm": [True],
    "pruned_heads": [{}],
    "unsloth_version": ["2025.5"],
    "transformers_version": ["4.57.6"],
    "_attn_implementation_autoset": [True],
    "dtype": ["bfloat16"],
    "id2label": [{"0": "LABEL_0"}],
    "tie_word_embeddings": [True],
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_no_number_is_accepted(name: str, tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", "gen", layers=2)
    expected = open_checkpoint(str(checkpoint)).architecture
    for value in HARMLESS[name]:
        config(**{name: value})(checkpoint)
        assert open_checkpoint(str(checkpoint)).architecture == expected


def head_like(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        embedding = open_checkpoint(str(folder)).weights.float32(EMBEDDING)
        tensor("lm_head.weight", change(embedding))(folder)

    return write


def test_a_tied_head_that_equals_the_embedding_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "_BLOCK", 1000)  # several, and the last one short
    checkpoint = make(tmp_path / "checkpoint", "gen", dtype="fp32")
    head_like(lambda embedding: embedding)(checkpoint)
    assert open_checkpoint(str(checkpoint)).architecture.tied

    def last(embedding: Any) -> Any:
        embedding[-1, -1] += 1
        return embedding

    head_like(last)(checkpoint)
    with pytest.raises(WrongArchitecture, match=r"lm_head\.weight differs"):
        open_checkpoint(str(checkpoint))


def test_a_head_of_a_part_of_the_embedding_is_refused(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", "gen", dtype="fp32")
    head_like(lambda embedding: embedding[:3])(checkpoint)
    with pytest.raises(WrongArchitecture, match=r"lm_head\.weight differs"):
        open_checkpoint(str(checkpoint))


def test_a_head_of_another_type_than_the_embedding_is_refused(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", "gen", dtype="fp32", shards=2)
    embedding = open_checkpoint(str(checkpoint)).weights.float32(EMBEDDING)
    write_safetensors(checkpoint / "head.safetensors", {"lm_head.weight": (embedding.shape, lambda: embedding)}, "bf16")
    edit(checkpoint, INDEX, lambda data: data["weight_map"].update({"lm_head.weight": "head.safetensors"}))
    with pytest.raises(WrongArchitecture, match=r"lm_head\.weight differs"):
        open_checkpoint(str(checkpoint))
    edit(checkpoint, INDEX, lambda data: data["weight_map"].pop("lm_head.weight"))
    assert open_checkpoint(str(checkpoint))
    edit(checkpoint, INDEX, lambda data: data["weight_map"].pop("model.norm.weight"))
    with pytest.raises(CorruptFile, match=r"'model\.norm\.weight', which .* does not place there"):
        open_checkpoint(str(checkpoint))


def test_a_stream_has_no_lm_head(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", "stream")
    head_like(lambda embedding: embedding)(checkpoint)
    for tied in (False, True):
        config(tie_word_embeddings=tied)(checkpoint)
        with pytest.raises(WrongArchitecture, match=r"'lm_head\.weight'"):
            open_checkpoint(str(checkpoint))


def test_rotations_that_transformers_wrote_are_not_needed(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", "gen")
    for name in ("model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq"):
        tensor(name, np.zeros(8))(checkpoint)
    assert open_checkpoint(str(checkpoint))


def test_of_two_sets_of_weights_neither_is_taken(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", "gen", shards=2)
    other = make(tmp_path / "other", "gen", seed=1)
    (checkpoint / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes())
    with pytest.raises(CorruptFile, match="both"):
        open_checkpoint(str(checkpoint))


@pytest.mark.parametrize("source", ["no/such/folder/at/all", "no spaces/please", ""])
def test_a_source_that_is_nothing(source: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound if source else CheckpointError):
        export(source, tmp_path / "models", say=lambda _: None)


def test_a_hub_that_does_not_answer_and_one_that_has_no_such_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub import errors as hub

    unreachable, no_model = "cannot be reached", "has no such model"
    for error, says in (
        (hub.LocalEntryNotFoundError("not in the cache"), unreachable),
        (hub.OfflineModeIsEnabled("HF_HUB_OFFLINE"), unreachable),
        (ConnectionError("no route\nto host"), unreachable),
        (hub.RepositoryNotFoundError("404", _response(404)), no_model),
        (hub.GatedRepoError("403", _response(403)), no_model),
        (OSError("no space\nleft"), r"did not give the model \(OSError\)"),
    ):

        def refuse(*_: Any, error: Exception = error, **options: Any) -> str:
            assert options["allow_patterns"] == ["*.json", "*.safetensors", "*.txt", "*.jinja"]
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
        with pytest.raises(CheckpointNotFound, match=rf"Qwen/Qwen3Guard-Gen-0\.6B is not a folder, and .*{says}"):
            export("Qwen/Qwen3Guard-Gen-0.6B", tmp_path / "models", say=lambda _: None)


def _response(status: int) -> Any:
    """What the hub's errors ask of the reply that they were made of."""
    return SimpleNamespace(status_code=status, headers={}, request=None)


def test_a_hub_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder = make(tmp_path / "snapshot", "gen", layers=1)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    assert open_checkpoint("Qwen/Qwen3Guard-Gen-0.6B").source == "Qwen/Qwen3Guard-Gen-0.6B"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("response_risk_level_map", None),
        ("response_risk_level_map", {"0": "Safe", "1": "Unsafe"}),
        ("query_category_map", {str(index): "Violent" for index in range(9)}),
        ("guard_inner_size", None),
    ],
)
def test_stream_heads_that_cannot_be_read(key: str, value: Any, tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", "stream")
    config(**{key: value})(checkpoint)
    with pytest.raises(WrongArchitecture, match=key):
        open_checkpoint(str(checkpoint))


def test_rope_parameters_as_transformers_5_writes_them(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", "gen")

    def modernize(data: dict[str, Any]) -> None:
        del data["rope_scaling"]
        data["rope_parameters"] = {"rope_theta": data.pop("rope_theta"), "rope_type": "default"}

    edit(checkpoint, "config.json", modernize)
    assert open_checkpoint(str(checkpoint)).architecture.rope_theta == 1e6


def test_a_missing_tensor_is_named_when_read(tmp_path: Path) -> None:
    weights = open_checkpoint(str(make(tmp_path / "checkpoint", "gen"))).weights
    with pytest.raises(MissingTensor, match="nothing"):
        weights.float32("nothing")
    assert weights.stored(EMBEDDING).shape == (300, 64)


def test_a_wrong_graph_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotations shifted by one position: the kind of mistake that parity is for."""
    from qwen3guard_export.graph import graph

    tables = graph.rope_tables
    monkeypatch.setattr(graph, "rope_tables", lambda given: [np.roll(table, 7, axis=1) for table in tables(given)])
    checkpoint = make(tmp_path / "checkpoint", "gen")
    with pytest.raises(ParityError, match="keys of layer 0"):
        export(str(checkpoint), tmp_path / "models", say=lambda _: None)
    assert not (tmp_path / "models").exists()
