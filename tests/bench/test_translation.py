"""The translation benchmark: the rival in PyTorch computes what our model computes, and both take steps."""

from __future__ import annotations

import re

import numpy as np
import pytest

from nanograd_llm import EncoderDecoder, EncoderDecoderConfig
from nanograd_llm.bench import translation
from nanograd_llm.bench.figures import Figure

NAMES = {"cross_attention.out": "out_cross", "cross_attention.": "", "attention.": "", "mlp.": ""}
NAMES |= {"source_table": "table.weight", "encoder_norm": "norms.0", "decoder_norm": "norms.1"}


def test_our_step_learns_on_batches_of_the_task() -> None:
    step = translation.training_step()
    losses = [step() for _ in range(12)]
    assert losses[-1] < losses[0] < 7


@pytest.mark.parity
def test_with_the_same_weights_the_rival_has_the_same_loss() -> None:
    torch = pytest.importorskip("torch")
    config = EncoderDecoderConfig(vocab_size=13, context_length=8, n_layer=2, n_head=2, n_embd=8)
    ours, theirs = EncoderDecoder(config, seed=1), translation._torch_model(config, torch)
    state = {}
    for name, array in ours.state_dict().items():
        other = re.sub("|".join(NAMES), lambda found: NAMES[found[0]], name)
        is_table = other == "table.weight" or array.ndim == 1
        state[other] = torch.from_numpy(np.ascontiguousarray(array if is_table else array.T))
    theirs.load_state_dict(state | {"places": theirs.places})
    source, target_in, target = np.random.default_rng(0).integers(1, 13, (3, 2, 5))
    source[0, 3:], target[1, 4] = 0, -100
    loss = theirs(*map(torch.from_numpy, (source, target_in, target))).item()
    assert loss == pytest.approx(ours.loss(source, target_in, target).item(), rel=1e-5)


@pytest.mark.parity
def test_it_reports_both_and_their_ratio() -> None:
    pytest.importorskip("torch")
    found = [one for one in translation.bench(True, rounds=1) if isinstance(one, Figure)]
    assert [figure.measure for figure in found] == ["step", "step, PyTorch", "step ÷ PyTorch"]
    assert found[2].value == pytest.approx(found[0].value / found[1].value) and found[2].target is not None
