"""12  Reading a report: a gradient is wrong, and the question is which line of which rule.

The one idea: a check that has found a mistake knows more than "wrong". It knows the worst entry, what kind of mistake
fits, and, by checking every op call on the tape by itself at the numbers it met there, whose rule is at fault.
"""

import numpy as np

import nanograd_llm as ng
from nanograd_llm import nn, ops
from nanograd_llm.gradcheck import assert_split_invariant, gradcheck, mutants

rng = np.random.default_rng(0)


def planted(op, name):
    """Plant one of the mistakes that people make in an op's rule; see the next example for all of them."""
    (mutant,) = [mutant for mutant in mutants(op) if mutant.name == name]
    return mutant.planted()


# %% In an op
# First the verdict, then the culprit: its rule, where it was called, where it is written, what the mistake looks like.
# Then a line for each input. "off by 3e-01 where 5e-14 is rounding" is the whole story of tolerances: the second number
# is derived from the sizes of the terms that were added up, and is not yours to tune.
with planted(ops.linear, "b: no broadcast sum"):
    report = gradcheck(ops.linear, rng.standard_normal((4, 3)), rng.standard_normal((3, 2)), rng.standard_normal(2))
print(report)
assert [finding.verdict for finding in report.findings] == ["right", "right", "wrong"]
assert "a sum over axis 0 of the result, to which the input was broadcast, is missing" in report.findings[2].pattern

# %% In a layer
# Inputs are named as `forward` names them, parameters as `named_parameters` does. Here one op is off by a billionth.
with planted(ops.gelu, "x: scaled by 1 + 1e-9"):
    report = gradcheck(nn.MLP(4, rng=rng).astype(np.float64), rng.standard_normal((3, 4)))
(culprit,) = report.culprits
print(f"\nin an MLP, at fault is {culprit.op}, called at {culprit.place.rpartition('/')[2]}: {culprit.pattern}")
assert (culprit.op, culprit.pattern[:17]) == ("gelu", "off by the factor")

# %% In a whole GPT
# One wrong op makes nearly every gradient below it wrong. The culprit says which module called it.
config = ng.GPTConfig(vocab_size=11, context_length=4, n_layer=2, n_head=2, n_embd=8)
model, ids = ng.GPT(config, seed=0), rng.integers(0, 11, (2, 5))
with planted(ops.layernorm, "x: cross terms dropped"):
    report = gradcheck(model.loss, ids[:, :-1], ids[:, 1:], jacobian=0)  # directions only: it is quicker
wrong = [finding.name for finding in report.findings if finding.verdict == "wrong"]
print(f"\nin a GPT, {len(wrong)} of {len(report.findings)} gradients are wrong; at fault:")
for culprit in report.culprits:
    print("   ", culprit.place.partition(", called")[0])
assert {culprit.op for culprit in report.culprits} == {"layernorm"} and len(wrong) > 10

# %% At a kink
# |x| has two slopes at 0 and no derivative. The report says where, and that the rule picks one of the two slopes or a
# value between, which is all that can be asked of it. Everywhere else the gradient is held to the usual.
report = gradcheck(ops.absolute, np.array([0.0, 1.0, -2.0]))
print(f"\n{report}")
assert report.passed and report.findings[0].verdict == "at a kink" and report.findings[0].kinks[0].index == (0,)

# %% Cannot tell
# Where a function rounds its numbers to float32 on the way, a check cannot see the last eight digits, and says so
# rather than pass.
report = gradcheck(lambda x: (x.astype(np.float32) * 3).astype(np.float64), rng.standard_normal(3))
print(f"\n{report.findings[0]}")
assert report.findings[0].verdict == "cannot tell" and not report.passed

# %% A right gradient of the wrong loss
# The mean over rows of each row's mean is a loss as good as any, but when rows have different numbers of targets it is
# another one for every way to cut the batch. No check of derivatives can see that; this one can.
targets = ids[:, 1:].copy()
targets[0, 1:] = -100  # does not count


def mean_of_means(tokens, targets):
    rows = [i for i in range(len(tokens)) if (targets[i] != -100).any()]
    return ops.mean(ops.stack([model.loss(tokens[i : i + 1], targets[i : i + 1]) for i in rows]))


assert_split_invariant(model.loss, (ids[:, :-1], targets), columns=False)
try:
    assert_split_invariant(mean_of_means, (ids[:, :-1], targets), columns=False)
    raise AssertionError("a loss that depends on how its batch is cut has passed")
except ng.NanogradError as error:
    print(f"\n{error}")
