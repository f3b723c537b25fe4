"""05  A training step: what happens between two values of a loss.

The one idea: compute the loss, walk back to get the gradients, and move every parameter a little against its gradient.
An optimizer decides how far each parameter moves. Here are two of them: plain SGD, and AdamW.
"""

# N points of a batch, H hidden units, K classes

import numpy as np

import nanograd_llm as ng
from nanograd_llm import nn, ops
from nanograd_llm.gradcheck import attempt
from nanograd_llm.training import AdamW

N, H, K, STEPS = 64, 16, 2, 300

# %% A task
# Points in the plane belong to two rings around the origin. Class 0 is the inner ring, class 1 the outer one. No
# straight line separates them, so one linear layer cannot solve this.


def rings(count, seed):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, K, count)  # (count)
    radius = 1.0 + classes + 0.2 * rng.standard_normal(count)
    angle = rng.uniform(0, 2 * np.pi, count)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)  # (count, 2)
    return points.astype(np.float32), classes


points, classes = rings(512, seed=0)
unseen_points, unseen_classes = rings(512, seed=1)


def batch(step):
    """N random points and their classes: (N, 2) and (N).  The same step gives the same points in every run."""
    chosen = np.random.default_rng(step).integers(0, len(points), N)
    return points[chosen], classes[chosen]


# %% A network of two layers
# A Module finds its parameters by itself. Here they are a weight and a bias in each of the two layers. For each point
# the last layer gives K numbers, one for each class. They are called logits. Softmax turns logits into probabilities
# (lesson 3). The loss is the cross-entropy: -log of the probability of the right class, as a mean over the points.


class Network(nn.Module):
    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.first = nn.Linear(2, H, rng=rng)
        self.second = nn.Linear(H, K, rng=rng)

    def forward(self, x):
        hidden = ops.tanh(self.first(x))  # (N, 2) -> (N, H)
        return self.second(hidden)  # (N, H) -> (N, K)

    def loss(self, x, targets):
        return ops.cross_entropy(self(x), targets)  # (N, K), (N) -> ()


model = Network()
print(model)
assert model.parameter_count() == (2 * H + H) + (H * K + K)

# %% One step, line by line
x, targets = batch(0)
learning_rate = 0.5

model.zero_grad()  # 1. forget the gradients of the step before
loss = model.loss(x, targets)  # 2. forward: compute the loss, and record the tape
loss.backward()  # 3. backward: every parameter now has a .grad of its own shape
with ng.no_grad():  # 4. update: it is not part of the loss, so it must not be recorded
    for parameter in model.parameters():
        parameter.data -= learning_rate * parameter.grad

after = model.loss(x, targets)
print(f"\none step: the loss of this batch goes from {loss.item():.4f} to {after.item():.4f}")
assert after.item() < loss.item()

# `.grad` is a NumPy array and not a Tensor: it has no `.data` that you could use and no `.zero_()`. Start again by
# `zero_grad`, or by `parameter.grad = None`.
#
# The update writes into `.data`, the array of the parameter. The Tensor remains the same object, so it remains a part
# of the model. NumPy arithmetic is never recorded, and `no_grad` makes sure that nothing else in the block is. Update
# only after `backward`: the tape keeps the arrays themselves, and backward would compute with the changed numbers.
#
# These four lines are stochastic gradient descent, SGD. It is called "stochastic" because the batch of each step is
# random.

# %% If you forget line 1
# `backward` adds to `.grad` (lesson 2). Without `zero_grad`, the second step would use the sum of two gradients.
model.zero_grad()
model.loss(x, targets).backward()
once = model.first.weight.grad.copy()
model.loss(x, targets).backward()
ratio = (model.first.weight.grad / once).mean()
print(f"without zero_grad, the same batch twice gives {ratio:.1f} times the gradient")
assert np.allclose(model.first.weight.grad, 2 * once)

# %% Many steps of SGD


def train_by_sgd(model, learning_rate, scale=1.0):
    """Train for STEPS steps and return the losses.  scale: a factor on the loss, used further below."""
    losses = []
    for step in range(STEPS):
        model.zero_grad()
        loss = model.loss(*batch(step))
        (loss * scale).backward()
        with ng.no_grad():
            for parameter in model.parameters():
                parameter.data -= learning_rate * parameter.grad
        losses.append(loss.item())
    return losses


sgd_model = Network()
sgd_losses = train_by_sgd(sgd_model, learning_rate=0.5)
assert np.mean(sgd_losses[-20:]) < 0.3 * np.mean(sgd_losses[:20])

# %% AdamW, by hand
# SGD moves far where the gradient is large, and hardly at all where it is small. AdamW divides each gradient by its
# usual size. It does this for every single number p of the model. Let g be the gradient of p. There are two averages, m
# and v, which start at 0.
#
#     m <- β₁*m + (1 - β₁)*g          the average gradient of the last steps
#     v <- β₂*v + (1 - β₂)*g²         the average square of it
#     m̂ = m/(1 - β₁ᵗ)                 corrects for the start at 0; t = 1, 2, … is the step
#     v̂ = v/(1 - β₂ᵗ)
#     p <- p - learning_rate * m̂/(√v̂ + ε)
#
# If the gradient hardly changes from step to step, m̂/√v̂ is close to 1 or -1. Then p moves by about the learning rate
# in each step.
BETA1, BETA2, EPSILON = 0.9, 0.95, 1e-8


class AdamByHand:
    def __init__(self, parameters):
        self.parameters = parameters
        self.m = [np.zeros_like(p.data) for p in parameters]
        self.v = [np.zeros_like(p.data) for p in parameters]
        self.t = 0

    def step(self, gradients, learning_rate):
        self.t += 1
        for p, g, m, v in zip(self.parameters, gradients, self.m, self.v):
            m[...] = BETA1 * m + (1 - BETA1) * g
            v[...] = BETA2 * v + (1 - BETA2) * g * g
            m_hat = m / (1 - BETA1**self.t)
            v_hat = v / (1 - BETA2**self.t)
            p.data -= learning_rate * m_hat / (np.sqrt(v_hat) + EPSILON)


# In the first step m̂ = g and v̂ = g², so every number moves by the learning rate, up or down.
model = Network()
before = [p.data.copy() for p in model.parameters()]
model.loss(*batch(0)).backward()
AdamByHand(model.parameters()).step([p.grad for p in model.parameters()], learning_rate=0.03)
moves = np.concatenate([np.abs(p.data - b).reshape(-1) for p, b in zip(model.parameters(), before)])
print(f"\nthe first step of AdamW moves each number by {moves.min():.4f} to {moves.max():.4f}")
assert np.allclose(moves, 0.03, rtol=1e-3)

# %% AdamW, from the package
# It computes the same, and it has weight decay, the W of its name. In each step weight decay makes the weights
# a little smaller, which keeps them from growing. Here it is 0, so that we can compare.


def train_by_adamw(model, make_optimizer, learning_rate, scale=1.0):
    """Train for STEPS steps and return the losses."""
    optimizer = make_optimizer(model.parameters())
    losses = []
    for step in range(STEPS):
        model.zero_grad()
        loss = model.loss(*batch(step))
        (loss * scale).backward()
        optimizer.step([p.grad for p in model.parameters()], learning_rate)
        losses.append(loss.item())
    return losses


def adamw(parameters):
    return AdamW(parameters, beta1=BETA1, beta2=BETA2, eps=EPSILON, weight_decay=0.0)


adamw_model = Network()
adamw_losses = train_by_adamw(adamw_model, adamw, learning_rate=0.03)
by_hand = train_by_adamw(Network(), AdamByHand, learning_rate=0.03)
assert np.allclose(adamw_losses[:50], by_hand[:50], atol=1e-3)  # equal up to the rounding of float32
assert np.mean(adamw_losses[-20:]) < 0.3 * np.mean(adamw_losses[:20])

# %% Both losses fall
# Each batch is different, so the losses jump up and down. A mean over 20 steps shows the direction.
print("\nsteps        SGD   AdamW")
for start in (0, 40, 80, 140, 200, 280):
    sgd_mean, adamw_mean = (np.mean(losses[start : start + 20]) for losses in (sgd_losses, adamw_losses))
    print(f"{start:3} to {start + 19:3}  {sgd_mean:.3f}   {adamw_mean:.3f}")


def accuracy(model):
    """The part of the unseen points for which the largest logit is that of the right class."""
    with ng.no_grad():  # no gradient is wanted here, so no tape
        logits = model(unseen_points).data  # (512, 2) -> (512, K)
    return np.mean(logits.argmax(axis=-1) == unseen_classes)


print(f"right on unseen points: SGD {accuracy(sgd_model):.1%}, AdamW {accuracy(adamw_model):.1%}")
assert min(accuracy(sgd_model), accuracy(adamw_model)) > 0.95

# %% A difference between the two
# Multiply the loss by 1,000. The best parameters stay the same, but all gradients are 1,000 times as large. Now the
# steps of SGD are 1,000 times too long. In AdamW the factor cancels in m̂/√v̂.
sgd_scaled = train_by_sgd(Network(), learning_rate=0.5, scale=1000.0)
adamw_scaled = train_by_adamw(Network(), adamw, learning_rate=0.03, scale=1000.0)
print("\nthe last 20 losses, if the gradients are 1,000 times as large:")
print(f"    SGD {np.mean(sgd_scaled[-20:]):.3f}, AdamW {np.mean(adamw_scaled[-20:]):.3f}")
assert np.mean(sgd_scaled[-20:]) > sgd_losses[0]
assert np.mean(adamw_scaled[-20:]) < 0.3 * adamw_scaled[0]

# In a GPT the gradients of different layers have very different sizes. This is one reason to train it with AdamW.

# %% Exercise 1: the backward pass of a whole network
# Here is the network without its biases, as one op: y = tanh(x u) v. Its rule has a mistake. Correct it. It helps to
# write down the shape of every array.


@ng.op("y = h v,  h = tanh(x u)", "x̄ = ?;  ū = ?;  v̄ = ?")
def exercise_1(x, u, v):
    """A network of two layers.  x (N, D), u (D, H), v (H, K) -> y (N, K)"""
    h = np.tanh(x @ u)
    return ng.keep(h @ v, h=h)


@exercise_1.backward
def exercise_1_backward(dy, x, u, v, h):
    v_bar = h.T @ dy  # (H, N) · (N, K) -> (H, K)
    h_bar = dy @ v.T  # (N, K) · (K, H) -> (N, H)
    u_bar = x.T @ h_bar  # (D, N) · (N, H) -> (D, H), not yet right
    x_bar = h_bar @ u.T  # (N, H) · (H, D) -> (N, D), not yet right
    return x_bar, u_bar, v_bar


rng = np.random.default_rng(0)
arrays = [rng.standard_normal(shape) for shape in [(5, 2), (2, 4), (4, 3)]]
print()
attempt(exercise_1, *arrays)

# %% Exercise 2: a loss of your own
# The mean squared error compares predictions a with targets b: y = ⟨(a - b)²⟩. The rule forgets that it is a mean.
# Correct it. Would you notice this mistake when you train with SGD? With AdamW?


@ng.op("y = ⟨(a - b)²⟩", "ā = ?;  b̄ = ?")
def exercise_2(a, b):
    """Mean squared error.  a (N), b (N) -> y ()"""
    return np.mean((a - b) ** 2)


@exercise_2.backward
def exercise_2_backward(dy, a, b):
    a_bar = dy * 2 * (a - b)  # not yet right
    return a_bar, -a_bar


attempt(exercise_2, rng.standard_normal(6), rng.standard_normal(6))

# %% Solution 1
# The step through tanh was missing. Call its input z:
#
#     z = x u                         (N, D) · (D, H) -> (N, H)
#     h = tanh z                      (N, H)
#     z̄ = h̄*(1 - h²)                  (N, H), since tanh' = 1 - tanh²
#     ū = xᵀ z̄                        (D, N) · (N, H) -> (D, H)
#     x̄ = z̄ uᵀ                        (N, H) · (H, D) -> (N, D)


@ng.op("y = h v,  h = tanh(x u)", "v̄ = hᵀ ȳ;  z̄ = ȳ vᵀ*(1 - h²);  ū = xᵀ z̄;  x̄ = z̄ uᵀ")
def solution_1(x, u, v):
    """A network of two layers.  x (N, D), u (D, H), v (H, K) -> y (N, K)"""
    h = np.tanh(x @ u)
    return ng.keep(h @ v, h=h)


@solution_1.backward
def solution_1_backward(dy, x, u, v, h):
    v_bar = h.T @ dy
    z_bar = dy @ v.T * (1 - h * h)
    return z_bar @ u.T, x.T @ z_bar, v_bar


assert attempt(solution_1, *arrays)

# %% Solution 2
# The mean divides by N, so ā = ȳ*2(a - b)/N. Without the N, the steps of SGD are N times too long. With AdamW the
# factor cancels, and you would not notice. So it is not enough that a model learns: check the gradient.


@ng.op("y = ⟨(a - b)²⟩", "ā = ȳ*2(a - b)/N;  b̄ = -ā")
def solution_2(a, b):
    """Mean squared error.  a (N), b (N) -> y ()"""
    return np.mean((a - b) ** 2)


@solution_2.backward
def solution_2_backward(dy, a, b):
    a_bar = dy * 2 * (a - b) / a.size
    return a_bar, -a_bar


assert attempt(solution_2, rng.standard_normal(6), rng.standard_normal(6))
