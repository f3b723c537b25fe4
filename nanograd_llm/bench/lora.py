"""LoRA on GPT-2 124M: a step and its memory against training all weights and against PyTorch with PEFT; and writing."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from nanograd_llm import nn
from nanograd_llm.bench import memory, workloads
from nanograd_llm.bench.figures import Figure, Note, Report
from nanograd_llm.bench.race import Maker, Step, contenders, race, warm_up
from nanograd_llm.bench.torch_gpt import transformers_gpt2
from nanograd_llm.bench.workloads import Workload
from nanograd_llm.inference.generate import generate
from nanograd_llm.inference.sampling import Sampling
from nanograd_llm.models.gpt import GPT, GPTConfig
from nanograd_llm.training.config import TrainConfig
from nanograd_llm.training.trainer import Trainer

NAME, OURS, LAST, ALL, THEIRS = "lora", "adapters", "the last block", "all weights", "PyTorch with PEFT"
RANK = 8
WORKLOAD = Workload(NAME, GPTConfig.preset("gpt2"), 2, 256, rounds=3, burst=1, limit=10)  # a row for each of two cores


def training_step(workload: Workload) -> Step:
    """A step that trains the adapters of every Linear of the blocks."""
    trainer = Trainer(nn.lora.add(GPT(workload.config), RANK), TrainConfig(batch_size=workload.batch_size))
    batch = workload.batch()
    return lambda: trainer.step(*batch)


def last_block_step(workload: Workload) -> Step:
    """A step that trains the last block and the last norm alone, as `--train-layers last` does."""
    model = GPT(workload.config)
    model.freeze()
    model.blocks[-1].unfreeze()
    model.ln_f.unfreeze()
    trainer, batch = Trainer(model, TrainConfig(batch_size=workload.batch_size)), workload.batch()
    return lambda: trainer.step(*batch)


def peft_step(workload: Workload) -> Step:
    """The same with transformers, PEFT, and PyTorch's fused AdamW."""
    torch, model = transformers_gpt2(workload.config, "sdpa")
    from peft import LoraConfig, get_peft_model

    layers = ["c_attn", "c_proj", "c_fc"]
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=16, target_modules=layers, fan_in_fan_out=True)).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1, fused=True)
    tokens, targets = map(torch.from_numpy, workload.batch())

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return float(loss.item())

    return step


def decoding(config: GPTConfig, count: int, adapters: str) -> Step:
    """A step that generates `count` tokens. adapters: "none", "merged" or "beside" the weights."""
    model, sampling = GPT(config), Sampling(temperature=0)
    if adapters != "none":
        nn.lora.add(model, RANK)
    if adapters == "merged":
        nn.lora.merge(model)
    return lambda: generate(model, [0], max_new_tokens=count, sampling=sampling)


def bench(
    against: bool, rounds: int | None = None, *, workload: Workload = WORKLOAD, count: int = 24
) -> Iterator[Report]:
    """Time and memory of a step, and tokens per second with merged adapters."""
    makers: dict[str, Maker] = {
        OURS: functools.partial(training_step, workload),
        LAST: functools.partial(last_block_step, workload),
        ALL: functools.partial(workloads.training_step, workload),
    }
    if against:
        makers[THEIRS] = functools.partial(peft_step, workload)
    with contenders(makers) as children:
        yield from warm_up(children, NAME)
        seconds = race(children, rounds, workload.burst, most=workload.rounds, limit=workload.limit)
        for name, took in seconds.items():
            yield Figure(NAME, f"step, {name}", took * 1e3, "ms")
        yield Figure(NAME, "step ÷ training all weights", seconds[OURS] / seconds[ALL], "ratio")
        if against:
            yield Figure(NAME, "step ÷ PyTorch with PEFT", seconds[OURS] / seconds[THEIRS], "ratio")
    if memory.can_measure():
        peaks = {name: memory.peak(make, workload.burst) for name, make in makers.items()}
        for name, peak in peaks.items():
            yield Figure(NAME, f"peak memory, {name}", peak / 1e6, "MB")
        yield Figure(NAME, "memory ÷ training all weights", peaks[OURS] / peaks[ALL], "ratio")
    else:
        yield Note(NAME, "memory is not measured: that needs Linux's /proc, which this machine does not have")
    kinds = {kind: functools.partial(decoding, workload.config, count, kind) for kind in ("none", "merged", "beside")}
    with contenders(kinds) as children:
        yield from warm_up(children, NAME)
        seconds = race(children, rounds, 1, most=workload.rounds, limit=workload.limit)
        for kind, took in seconds.items():
            yield Figure(NAME, f"writing, adapters {kind}", count / took, "tokens/s")
        yield Figure(NAME, "writing, merged ÷ without adapters", seconds["none"] / seconds["merged"], "ratio")
