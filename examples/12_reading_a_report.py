"""12  Reading a report: a gradient is wrong; which rule is the cause?

The one idea: the report of a check says more than "wrong". It shows the worst entry, and the kind of mistake that fits.
It also checks every op call on the tape separately, with the numbers of that call, and names the rule that is wrong.
"""

import numpy as np

import nanograd_llm as ng
from nanograd_llm import nn, ops
from nanograd_llm.gradcheck import assert_split_invariant, check_gradient, gradcheck, mutants

rng = np.random.default_rng(0)


def planted(op, name):
    """Plant a typical mistake in an op's rule; lesson 13 shows all of them."""
    (mutant,) = [mutant for mutant in mutants(op) if mutant.name == name]
    return mutant.planted()


# %% In an op
# First comes the verdict. Then the culprit: its rule, where it was called, where it is written, and what the mistake
# looks like. Then a line for each input. It may say "off by 3e-01 where 5e-14 is rounding". The second number is the
# tolerance; the check computes it from the sizes of the terms that were added, and you cannot set it.
with planted(ops.linear, "b: no broadcast sum"):
    report = gradcheck(ops.linear, rng.standard_normal((4, 3)), rng.standard_normal((3, 2)), rng.standard_normal(2))
print(report)
assert [finding.verdict for finding in report.findings] == ["right", "right", "wrong"]
assert "a sum over axis 0 of the result, along which the input is used again, is missing" in report.findings[2].pattern

# %% In a layer
# Inputs have their names in `forward`, parameters those of `named_parameters`. Here one op is off by a billionth.
with planted(ops.gelu, "x: scaled by 1 + 1e-9"):
    report = gradcheck(nn.MLP(4, rng=rng).astype(np.float64), rng.standard_normal((3, 4)))
(culprit,) = report.culprits
print(f"\nin an MLP, the culprit is {culprit.op}, called at {culprit.place.rpartition('/')[2]}: {culprit.pattern}")
assert (culprit.op, culprit.pattern[:17]) == ("gelu", "off by the factor")

# %% In a whole GPT
# One wrong op makes nearly every gradient before it wrong. The culprit says which module called it.
config = ng.GPTConfig(vocab_size=11, context_length=4, n_layer=1, n_head=2, n_embd=8)
model, ids = ng.GPT(config, seed=0), rng.integers(0, 11, (2, 5))
with planted(ops.layernorm, "x: cross terms dropped"):
    report = gradcheck(model.loss, ids[:, :-1], ids[:, 1:], jacobian=0)  # only random directions, which is faster
wrong = [finding.name for finding in report.findings if finding.verdict == "wrong"]
print(f"\nin a GPT, {len(wrong)} of {len(report.findings)} gradients are wrong; the culprits are:")
for culprit in report.culprits:
    print("   ", culprit.place.partition(", called")[0])
assert {culprit.op for culprit in report.culprits} == {"layernorm"} and len(wrong) > 10

# %% At a kink
# |x| has two slopes at 0 and no derivative. The report says where, and that the rule gives one of the two slopes or a
# value between, which is right there. All other entries are checked as usual.
report = gradcheck(ops.absolute, np.array([0.0, 1.0, -2.0]))
print(f"\n{report}")
assert report.passed and report.findings[0].verdict == "at a kink" and report.findings[0].kinks[0].index == (0,)

# %% Cannot tell
# If a function rounds its numbers to float32, the check sees only about five digits. A right gradient is "right", and a
# note says to how many digits. A mistake that is smaller than they show cannot be told from rounding: the check says
# so, and does not pass.
x = rng.standard_normal(3)
report = gradcheck(lambda x: (x.astype(np.float32) * 3).astype(np.float64), x)
print(f"\n{report}")
assert report.passed and any("is right to about" in note for note in report.notes)
report = check_gradient(lambda x: 3 * x.astype(np.float32), lambda x: np.full(3, 3 * (1 + 1e-4)), x)
print(f"\n{report.findings[0]}")
assert report.findings[0].verdict == "cannot tell" and not report.passed

# %% A right gradient of the wrong loss
# Take the mean of each row, and then the mean over the rows. If rows have different numbers of targets, this loss
# depends on how the batch is split. A check of derivatives cannot see this, but `assert_split_invariant` can.
targets = ids[:, 1:].copy()
targets[0, 1:] = -100  # does not count


def mean_of_means(tokens, targets):
    rows = [i for i in range(len(tokens)) if (targets[i] != -100).any()]
    return ops.mean(ops.stack([model.loss(tokens[i : i + 1], targets[i : i + 1]) for i in rows]))


assert_split_invariant(model.loss, (ids[:, :-1], targets), columns=False)
try:
    assert_split_invariant(mean_of_means, (ids[:, :-1], targets), columns=False)
    raise AssertionError("a loss that depends on how its batch is split has passed")
except ng.NanogradError as error:
    print(f"\n{error}")
