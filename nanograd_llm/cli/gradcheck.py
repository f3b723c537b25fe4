"""`nanograd-llm gradcheck`: check the gradients of every op, of every layer, or of a trained model."""

from __future__ import annotations

from nanograd_llm.cli.options import Device
from nanograd_llm.cli.terminal import waiting


def gradcheck(
    *,
    op: str | None = None,
    order: int | None = None,
    thorough: bool = False,
    model: str | None = None,
    cases: int | None = None,
    seed: int = 0,
    device: Device = "cpu",
) -> int:
    """Check the gradient of every op, of every layer and of the GPT numerically; exit code 1 unless all are right.

    The table shows the largest relative error of each, and how many of the mistakes planted in its rules were found.

    Parameters
    ----------
    op
        The name of one op or layer, such as softmax or Block; all if not given.
    order
        1 checks gradients; 2 also checks gradients of gradients, on a few small cases of each. 2 if not given, and 1
        for --model.
    thorough
        5,000 cases of each op instead of 200.
    model
        The folder of a run of any task, or a pretrained model: check its own loss at its weights instead of ops and
        layers.
    cases
        Random cases of each op; 200 if not given. A layer, which is made of many ops, gets a tenth of them.
    seed
        Seed of the random cases.
    device
        Where the ops compute; the numbers are compared on the CPU.
    """
    from nanograd_llm.backend.arrays import use_device
    from nanograd_llm.errors import ConfigError
    from nanograd_llm.gradcheck import OpSummary, Summary, check_each, check_model, cost_of_model, table_head

    use_device(device)
    if model is not None:
        from rich.console import Console

        from nanograd_llm.runs.opening import open_model

        if op is not None or thorough or cases is not None:
            raise ConfigError("--model checks one model; leave out --op, --cases and --thorough, which are about ops")
        trained = open_model(model).model(strict=True)
        print(cost_of_model(trained, order=order or 1), flush=True)
        with waiting("checking"):
            report = check_model(trained, order=order or 1, seed=seed)
        Console(highlight=False).print(report, soft_wrap=True)
        return 0 if report.passed else 1
    if thorough and cases is not None:
        raise ConfigError("--thorough means 5,000 cases, and --cases gives another number; give one of them")
    count = 5000 if thorough else 200 if cases is None else cases
    order = 2 if order is None else order
    found: list[OpSummary] = []
    for one in check_each(None if op is None else [op], order=order, cases=count, seed=seed):
        print(one.line if found else f"{table_head(len(one.errors))}\n{one.line}", flush=True)
        found.append(one)
    summary = Summary(tuple(found))
    print(f"\n{summary.conclusion}")
    return 0 if summary.passed else 1
