"""The floor computes exactly the matrix products of a real step."""

from __future__ import annotations

import numpy as np
import pytest

from nanograd_llm.bench.decode import weight_bytes
from nanograd_llm.bench.floor import Floor, flops, products
from nanograd_llm.bench.workloads import GPT2_STEP, MID, TOY, Workload
from nanograd_llm.models.gpt import GPT, GPTConfig

SMALL = GPTConfig(vocab_size=11, context_length=8, n_layer=2, n_head=2, n_embd=4)
ODD = GPTConfig(vocab_size=7, context_length=9, n_layer=1, n_head=3, n_embd=6, n_inner=10)


def workload(config: GPTConfig, batch_size: int) -> Workload:
    return Workload("tiny", config, batch_size, config.context_length)


@pytest.mark.parametrize("config", [SMALL, ODD])
@pytest.mark.parametrize("backward", [True, False])
def test_the_flops_are_those_of_all_matrices_and_half_of_the_scores(config, backward):
    B, T, H, D = 3, config.context_length, config.n_head, config.n_embd // config.n_head
    matrices = [p.size for name, p in GPT(config).named_parameters() if p.ndim == 2 and name != "wpe"]
    passes = 3 if backward else 1
    attention = 2 * (2 * B * H * ((T + 1) // 2) * T * D) * config.n_layer
    assert flops(workload(config, B), backward=backward) == passes * (2 * B * T * sum(matrices) + attention)


@pytest.mark.parametrize("config", [SMALL, ODD])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_products_computed_are_those_counted(config, batch_size):
    run = Floor(workload(config, batch_size))
    counted = sum(2 * out.size * a.shape[-1] for share in run.work for a, _, out in share)
    assert counted == run.flops == flops(workload(config, batch_size))


def test_every_product_is_computed():
    run = Floor(workload(SMALL, 1))
    run()
    for a, _, out in run.work[0]:
        assert np.all(out == a.shape[-1])  # the operands are ones


def test_transposed_operands_are_transposed_in_memory():
    layouts = {p.layout for p in products(SMALL, 2, 8)}
    assert layouts == {"nn", "nt", "tn"}
    run = Floor(workload(SMALL, 1))
    assert any(a.flags.f_contiguous and not a.flags.c_contiguous for a, _, _ in run.work[0])
    assert any(b.flags.f_contiguous and not b.flags.c_contiguous for _, b, _ in run.work[0])


@pytest.mark.parametrize(("one", "gigaflops"), [(TOY, 3.8), (MID, 138.1), (GPT2_STEP, 394.1)])
def test_the_workloads_have_the_documented_flops(one, gigaflops):
    assert flops(one) / 1e9 == pytest.approx(gigaflops, rel=0.01)


def test_a_token_reads_every_weight_except_the_other_positions():
    model = GPT(SMALL)
    assert weight_bytes(SMALL) == 4 * (model.parameter_count() - (SMALL.context_length - 1) * SMALL.n_embd)
    assert weight_bytes(GPTConfig.preset("gpt2")) == 4 * (124_439_808 - 1023 * 768)
