"""Write fixtures: one tiny GPT-2 in every form of file, each written by the library that such files come from.

    pip install torch transformers && python tests/pretrained/make_fixtures.py
    pip install tensorflow-cpu safetensors && python tests/pretrained/make_fixtures.py tensorflow

each in its own environment, in this order. They fill `fixtures/`, which is all that the tests need.

    safetensors_float64/ _float32/ _float16/ _bfloat16/     config.json, model.safetensors
    safetensors_float32/                                    and vocab.json, merges.txt
    safetensors_sharded/                                    two shards and their index
    bin_float32/                                            an older pytorch_model.bin: no prefix, masks as buffers
    bin_bfloat16/ bin_sharded/                              with the prefix `transformer.` and a tied lm_head.weight
    nanogpt/ckpt.pt                                         as nanoGPT saves a compiled model with its AdamW
    llmc/gpt2_tiny.bin, gpt2_tiny_bf16.bin                  llm.c's versions 3 and 5
    tensorflow/                                             OpenAI's layout and names
    expected.npz                                            ids (B, T), and for weights rounded to each dtype the
                                                            logits (B, T, V) of transformers in float64; every
                                                            eighth is kept: logits[..., ::8]
    small/                                                  files of a few tensors, which tests cut at every byte

llm.c has no library: `write_llmc` follows its train_gpt2.py. The weights are float32 unless the name says otherwise.
B batch, T time, C channels, V vocabulary
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parents[1] / "fixtures"
SIZES = {"vocab_size": 264, "n_positions": 7, "n_embd": 6, "n_layer": 2, "n_head": 2}
MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("r", "e"), ("Ġ", "a"), ("Ġthe", "re")]
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # in nanoGPT, llm.c


def weights() -> dict[str, np.ndarray]:
    """The model in float64 with GPT-2's names. Every entry matters, and none has its initial value."""
    rng = np.random.default_rng(20190214)
    V, T, C, L = (SIZES[name] for name in ("vocab_size", "n_positions", "n_embd", "n_layer"))
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (V, C), "wpe.weight": (T, C)}
    for layer in range(L):
        shapes |= {
            f"h.{layer}.{name}": shape
            for name, shape in {
                "ln_1.weight": (C,),
                "ln_1.bias": (C,),
                "attn.c_attn.weight": (C, 3 * C),
                "attn.c_attn.bias": (3 * C,),
                "attn.c_proj.weight": (C, C),
                "attn.c_proj.bias": (C,),
                "ln_2.weight": (C,),
                "ln_2.bias": (C,),
                "mlp.c_fc.weight": (C, 4 * C),
                "mlp.c_fc.bias": (4 * C,),
                "mlp.c_proj.weight": (4 * C, C),
                "mlp.c_proj.bias": (C,),
            }.items()
        }
    shapes |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
    scale = {"ln_1.weight": 1.0, "ln_2.weight": 1.0, "ln_f.weight": 1.0}
    return {
        name: scale.get(name.split(".", 2)[-1] if name.startswith("h.") else name, 0.0)
        + 0.4 * rng.standard_normal(shape)
        for name, shape in shapes.items()
    }


def fresh_folder(name: str) -> Path:
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def vocabulary() -> dict[str, int]:
    """256 pieces of one byte each, in GPT-2's order and spelling, then the merged ones, then `<|endoftext|>`."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    pieces = [*map(chr, printable), *(chr(256 + place) for place in range(len(others)))]
    pieces += [left + right for left, right in MERGES] + ["<|endoftext|>"]
    return {piece: place for place, piece in enumerate(pieces)}


def write_tokenizer(folder: Path) -> None:
    """vocab.json and merges.txt"""
    from tokenizers.models import BPE

    BPE(vocabulary(), MERGES).save(str(folder))


def with_torch() -> None:
    import torch
    import transformers
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import save_file

    config = transformers.GPT2Config(**SIZES, bos_token_id=263, eos_token_id=263)
    exact = {name: torch.from_numpy(array) for name, array in weights().items()}
    ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 7))
    expected: dict[str, np.ndarray] = {"ids": ids}

    def filled(dtype: torch.dtype) -> Any:
        rounded = {
            f"transformer.{name}": x if dtype == torch.float64 else x.float().to(dtype) for name, x in exact.items()
        }
        model = transformers.GPT2LMHeadModel(config).to(dtype).eval()
        model.load_state_dict(rounded | {"lm_head.weight": rounded["transformer.wte.weight"]})
        return model

    models = {name: filled(getattr(torch, name)) for name in ("float64", "float32", "float16", "bfloat16")}
    for name, model in models.items():
        folder = fresh_folder(f"safetensors_{name}")
        model.save_pretrained(folder)
        with torch.no_grad():
            upcast = transformers.GPT2LMHeadModel(config).double().eval()
            upcast.load_state_dict({key: x.double() for key, x in model.state_dict().items()})
            expected[f"logits_{name}"] = upcast(torch.from_numpy(ids)).logits.numpy()[..., ::8]
    write_tokenizer(FIXTURES / "safetensors_float32")
    np.savez_compressed(FIXTURES / "expected.npz", **expected)  # type: ignore[arg-type]

    single = models["float32"]
    single.save_pretrained(fresh_folder("safetensors_sharded"), max_shard_size=7000)
    for name in ("bin_float32", "bin_bfloat16", "bin_sharded"):
        config.save_pretrained(fresh_folder(name))
    old = {name: x.float() for name, x in exact.items()}
    for layer in range(SIZES["n_layer"]):
        old[f"h.{layer}.attn.bias"] = torch.ones(7, 7).tril().reshape(1, 1, 7, 7).to(torch.uint8)
        old[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(old, FIXTURES / "bin_float32" / "pytorch_model.bin")
    torch.save(models["bfloat16"].state_dict(), FIXTURES / "bin_bfloat16" / "pytorch_model.bin")
    save_torch_state_dict(
        dict(single.state_dict()),
        FIXTURES / "bin_sharded",
        filename_pattern="pytorch_model{suffix}.bin",
        max_shard_size=7000,
        safe_serialization=False,
    )

    with_transposed = {
        name: x.float().T.contiguous() if name.endswith(TRANSPOSED) else x.float() for name, x in exact.items()
    }
    write_nanogpt(fresh_folder("nanogpt") / "ckpt.pt", with_transposed)
    folder = fresh_folder("llmc")
    write_llmc(folder / "gpt2_tiny.bin", with_transposed, 3)
    write_llmc(folder / "gpt2_tiny_bf16.bin", with_transposed, 5)

    folder = fresh_folder("small")
    few = {
        "weight": torch.arange(6.0).reshape(2, 3),
        "half": torch.arange(4.0).to(torch.bfloat16),
        "mask": torch.tensor([[True, False]]),
        "step": torch.tensor(3),
    }
    save_file(few, folder / "few.safetensors", {"format": "pt"})
    torch.save(few | {"turned": few["weight"].T}, folder / "few.bin")
    torch.save(few, folder / "legacy.bin", _use_new_zipfile_serialization=False)


def write_nanogpt(path: Path, tensors: dict[str, Any]) -> None:
    """Write what nanoGPT's train.py saves: the state of a compiled model and of its AdamW, and plain settings."""
    import torch

    state = {f"_orig_mod.transformer.{name}": torch.nn.Parameter(x) for name, x in tensors.items()}
    decayed = [x for x in state.values() if x.dim() >= 2]
    others = [x for x in state.values() if x.dim() < 2]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))  # with this rate a step changes no weight
    for name, x in state.items():
        x.grad = torch.ones_like(x) if ".h.1." in name else None  # a frozen weight has no state
    optimizer.step()
    model_args = {
        "n_layer": SIZES["n_layer"],
        "n_head": SIZES["n_head"],
        "n_embd": SIZES["n_embd"],
        "block_size": SIZES["n_positions"],
        "bias": True,
        "vocab_size": SIZES["vocab_size"],
        "dropout": 0.0,
    }
    checkpoint = {
        "model": {name: x.detach() for name, x in state.items()}
        | {"_orig_mod.lm_head.weight": state["_orig_mod.transformer.wte.weight"].detach()},
        "optimizer": optimizer.state_dict(),
        "model_args": model_args,
        "iter_num": 1,
        "best_val_loss": torch.tensor(5.5),
        "config": {"out_dir": "out", "learning_rate": 6e-4, "compile": True, "dataset": "shakespeare"},
    }
    torch.save(checkpoint, path)


def write_llmc(path: Path, tensors: dict[str, Any], version: int) -> None:
    """A header of 256 int32, then every tensor, stacked over the layers; version 5 holds bfloat16."""
    import torch

    padded = -SIZES["vocab_size"] % 128
    header = np.zeros(256, np.int32)
    header[:2] = 20240326, version
    header[2:7] = [SIZES[name] for name in ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd")]
    header[7] = SIZES["vocab_size"] + padded
    kinds = [name.removeprefix("h.0.") for name in tensors if name.startswith("h.0.")]
    ordered = ["wte.weight", "wpe.weight"]
    ordered += [f"h.{layer}.{kind}" for kind in kinds for layer in range(SIZES["n_layer"])]
    ordered += ["ln_f.weight", "ln_f.bias"]
    tensors = tensors | {"wte.weight": torch.nn.functional.pad(tensors["wte.weight"], (0, 0, 0, padded))}
    with path.open("wb") as file:
        file.write(header.tobytes())
        for name in ordered:
            x = tensors[name]
            file.write((x.numpy() if version == 3 else x.bfloat16().view(torch.int16).numpy()).tobytes())


def with_tensorflow() -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf
    from safetensors.numpy import load_file

    tensors = load_file(FIXTURES / "safetensors_float32" / "model.safetensors")
    folder = fresh_folder("tensorflow")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, array in tensors.items():
            array = array[None] if name.endswith(TRANSPOSED) else array  # stored as a convolution over one position
            tf.compat.v1.get_variable(openai_name(name), initializer=array)
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(save_relative_paths=True)
        saver.save(session, str(folder / "model.ckpt"), write_meta_graph=False)
    (folder / "hparams.json").write_text(
        json.dumps({"n_vocab": 264, "n_ctx": 7, "n_embd": 6, "n_head": 2, "n_layer": 2})
    )
    (folder / "encoder.json").write_text(json.dumps(vocabulary()))
    merges = "".join(f"{left} {right}\n" for left, right in MERGES)
    (folder / "vocab.bpe").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")

    small = FIXTURES / "small"
    shards = [str(FIXTURES / f"part{shard}") for shard in range(2)]
    few = {"a/b": np.arange(6, dtype=np.float32).reshape(2, 3), "a/c": np.arange(3), "d": np.float64(0.5)}
    for shard, names in zip(shards, (["a/b", "d"], ["a/c"])):
        tf.raw_ops.SaveV2(
            prefix=shard, tensor_names=names, shape_and_slices=[""] * len(names), tensors=[few[name] for name in names]
        )
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=shards, destination_prefix=str(small / "few"))
    tf.raw_ops.SaveV2(
        prefix=str(small / "words"), tensor_names=["word"], shape_and_slices=[""], tensors=[tf.constant(["text"])]
    )


def openai_name(name: str) -> str:
    """model/h0/attn/c_attn/w for transformer.h.0.attn.c_attn.weight"""
    *scope, last = name.removeprefix("transformer.").split(".")
    if scope in (["wte"], ["wpe"]):
        return f"model/{scope[0]}"
    if scope[0] == "h":
        scope[:2] = [f"h{scope[1]}"]
    weight = "g" if scope[-1].startswith("ln_") else "w"
    return "/".join(["model", *scope, weight if last == "weight" else "b"])


if __name__ == "__main__":
    with_tensorflow() if sys.argv[1:] == ["tensorflow"] else with_torch()
    for file in FIXTURES.rglob("*"):
        if file.name == "generation_config.json":
            file.unlink()
        elif file.is_file():
            file.chmod(0o644)  # safetensors writes files that only the owner can read
