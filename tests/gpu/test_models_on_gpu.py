"""Models on a GPU: they train, resume, write and are stored as on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanograd_llm import (
    BERT,
    GPT,
    BERTConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    GPTConfig,
    no_grad,
    save_gpt2,
    trace,
)
from nanograd_llm.backend.arrays import to_host, use_device
from nanograd_llm.backend.randomness import noise
from nanograd_llm.cli import main
from nanograd_llm.inference import generate
from nanograd_llm.inference.sampling import Sampling
from nanograd_llm.runs.folder import RunFolder
from nanograd_llm.text import random_windows
from nanograd_llm.training import TrainConfig, Trainer

pytestmark = pytest.mark.gpu
TEXT = np.arange(600) * 7 % 11


def batches(step: int) -> tuple[np.ndarray, np.ndarray]:
    return random_windows(TEXT, context_length=16, batch_size=6, seed=0, step=step)


def gpt(device: str, **changes: Any) -> GPT:
    sizes: dict[str, Any] = dict(vocab_size=11, context_length=16, n_layer=2, n_head=2, n_embd=32, dropout=0.1)
    return GPT(GPTConfig(**{**sizes, **changes}), seed=0).to(device)


def trainer(device: str, model: Any = None) -> Trainer:
    return Trainer(model or gpt(device), TrainConfig(learning_rate=1e-2, steps=40, batch_size=6, workers=1))


MODELS = {
    "GPT": lambda: gpt("cpu"),
    "BERT": lambda: BERT(BERTConfig(vocab_size=30, context_length=16, n_layer=2, n_head=2, n_embd=32), seed=0),
    "EncoderDecoder": lambda: EncoderDecoder(
        EncoderDecoderConfig(vocab_size=30, context_length=16, n_layer=1, n_head=2, n_embd=32), seed=0
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_and_all_gradients_are_those_of_the_cpu(name: str, rng: np.random.Generator) -> None:
    from nanograd_llm.gradcheck.cases.samples import Draw

    found = []
    for device in ("cpu", "cuda"):
        model = MODELS[name]().to(device)
        batch = model.example_batch(Draw(np.random.default_rng(0)))
        with noise(1, 2, 3):
            loss = model.loss(*batch)
        loss.backward()
        gradients = {key: to_host(p.grad) for key, p in model.named_parameters() if p.grad is not None}
        found.append({"loss": loss.numpy(), **gradients})
    expected, there = found
    assert there.keys() == expected.keys() and len(there) > 1
    for key, array in expected.items():
        np.testing.assert_allclose(there[key], array, rtol=2e-4, atol=2e-6, err_msg=key)


def test_ten_steps_with_dropout_are_those_of_the_cpu() -> None:
    here, there = trainer("cpu"), trainer("cuda")
    losses = [[one.step(*batches(step)) for step in range(10)] for one in (here, there)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    expected, found = here.state_dict(), there.state_dict()
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=2e-2, atol=2e-4, err_msg=name)


@pytest.mark.parametrize(("first", "then"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_run_goes_on_on_the_other_device(first: str, then: str) -> None:
    whole, begun, resumed = trainer("cpu"), trainer(first), trainer(then)
    expected = [whole.step(*batches(step)) for step in range(8)]
    losses = [begun.step(*batches(step)) for step in range(4)]
    resumed.load_state_dict(begun.state_dict())
    losses += [resumed.step(*batches(step)) for step in range(4, 8)]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_a_trainer_on_a_gpu_gives_the_same_bits_every_time() -> None:
    found = set()
    for _ in range(2):
        one = trainer("cuda")
        for step in range(3):
            one.step(*batches(step))
        found.add(b"".join(array.tobytes() for array in one.state_dict().values()))
    assert len(found) == 1


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("prompts", [[1, 2], [[1], [4, 5, 6]], [[n] for n in range(1, 11)]])
def test_generation_writes_what_the_cpu_writes(prompts: Any, cache: bool) -> None:
    written = [
        generate(gpt(device), prompts, max_new_tokens=24, sampling=Sampling(temperature=0.8, seed=3), cache=cache)
        for device in ("cpu", "cuda")
    ]
    assert written[0] == written[1]


def test_gpt2_124m_gives_the_logits_of_pytorch(tmp_path: Path, rng: np.random.Generator) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.backends.cuda.matmul.allow_tf32 = False
    model = GPT(GPTConfig.preset("gpt2"), seed=0)
    save_gpt2(model, tmp_path / "weights")
    tokens = rng.integers(50257, size=(2, 300))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "weights").eval().to("cuda")
    with torch.no_grad(), no_grad():
        expected = theirs(torch.from_numpy(tokens).to("cuda")).logits.cpu().numpy()
        found = model.eval().to("cuda")(tokens).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_trace_of_a_model_holds_numpy_arrays_with_the_numbers_of_the_cpu() -> None:
    expected, found = (trace(gpt(device, dropout=0.0).loss, *batches(0)) for device in ("cpu", "cuda"))
    for one, other in zip(found, expected, strict=True):
        assert (one.name, type(one.output.array), type(one.cotangent)) == (other.name, np.ndarray, np.ndarray)
        np.testing.assert_allclose(one.output.array, other.output.array, rtol=1e-4, atol=1e-5)
    for name, gradient in found.grads.items():
        np.testing.assert_allclose(gradient, expected.grads[name], rtol=1e-3, atol=1e-5)
    assert found.nudge("wte", (1, 2)).agrees and found.shadow().rows
    assert not any(value.hooked for value in found.values()), "the sums over uses have the same bits on the CPU"


SIZES = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--context-length", "16", "--batch-size", "4"]


def test_the_command_line_trains_resumes_and_writes_on_either_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "run")
    with use_device("cpu"):
        assert main(["train", "--device", "cuda", "--steps", "4", "--out", path, "--held-out", "0.01", *SIZES]) == 0
        assert main(["train", "--resume", path, "--steps", "6"]) == 0
        assert main(["train", "--resume", path, "--steps", "8", "--device", "cuda"]) == 0
        assert sorted(RunFolder(Path(path)).checkpoints())[-1] == 8
        capsys.readouterr()
        texts = []
        for device in ("cpu", "cuda"):
            assert main(["generate", path, "The", "--seed", "1", "--max-new-tokens", "20", "--device", device]) == 0
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1]
        page = str(tmp_path / "page.html")
        for command in (["step", path, "The cat", "--html", page], ["look", path, "The cat", "--html", page]):
            assert main([*command, "--device", "cuda"]) == 0
        assert "how surprised it is" in capsys.readouterr().out
        assert main(["train", "--resume", path, "--steps", "9", "--watch", "1", "--device", "cuda"]) == 0
        assert RunFolder(Path(path)).read_watched()[-1]["step"] == 9


def test_the_loss_of_a_run_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "run")
    assert main(["train", "--steps", "2", "--out", path, "--held-out", "0.01", "--vocab-size", "260", *SIZES]) == 0
    with use_device("cpu"):
        assert main(["gradcheck", "--model", path, "--device", "cuda"]) == 0
    assert "gradients of loss: right" in capsys.readouterr().out


def test_the_doctor_names_the_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "CuPy" in out and "GB free of" in out
