"""`nanograd-llm info`: what a run folder holds."""

from __future__ import annotations

from pathlib import Path


def info(run: Path, /) -> None:
    """Show a run: its model, parameters, tokenizer, scores and checkpoints.

    Parameters
    ----------
    run
        The run folder that `train` made.
    """
    from rich.console import Console
    from rich.table import Table

    from nanograd_llm.runs import load_run
    from nanograd_llm.training.run_folder import RunFolder

    folder = RunFolder.open(run)
    model, tokenizer = load_run(run)
    metrics = folder.read_metrics()
    steps = [record for record in metrics if "loss" in record]
    scores = [record for record in metrics if "bits_per_byte" in record]
    console = Console(highlight=False)
    for name, table in folder.read_config().items():
        console.print(f"{name:<10}", ", ".join(f"{key}={value}" for key, value in table.items()), markup=False)
    console.print(f"{'tokenizer':<10} {tokenizer}", markup=False)
    if steps:
        last = steps[-1]
        console.print(f"{'trained':<10} {last['step']:,} steps, {last['tokens']:,} tokens, loss {last['loss']:.3f}")
    if scores:
        last = scores[-1]
        console.print(f"{'held out':<10} {last['bits_per_byte']:.3f} bits per byte at step {last['step']:,}")
    console.print(f"{'checkpoints':<10}", ", ".join(str(step) for step in folder.checkpoints()))
    parameters = Table("parameter", "shape", "numbers", title=None)
    for name, parameter in model.named_parameters():
        parameters.add_row(name, str(parameter.shape), f"{parameter.size:,}")
    parameters.add_section()
    parameters.add_row("all", "", f"{model.parameter_count():,}")
    console.print(parameters)
