"""Every operation a model is made of. Read `primitive`, `layout`, `composed`, then `fused` and `attention`.

All take Tensors (recorded, differentiable) or bare arrays (just computed).
"""

from nanograd_llm.ops.attention import attention, multi_head_attention, sequence_mask
from nanograd_llm.ops.fused import (
    cross_entropy,
    dropout,
    gelu,
    gelu_exact,
    layernorm,
    linear,
    linear_cross_entropy,
    log_softmax,
    logsumexp,
    rmsnorm,
    silu,
    softmax,
)
from nanograd_llm.ops.layout import (
    add_rows,
    broadcast_to,
    cast,
    causal_mask,
    concatenate,
    embedding,
    expand_dims,
    getitem,
    reshape,
    scatter,
    split,
    squeeze,
    stack,
    swapaxes,
    transpose,
    tril,
)
from nanograd_llm.ops.primitive import (
    absolute,
    add,
    clip,
    cos,
    divide,
    erf,
    exp,
    log,
    log1p,
    matmul,
    max,
    maximum,
    mean,
    minimum,
    multiply,
    negative,
    power,
    sin,
    sqrt,
    subtract,
    sum,
    tanh,
    where,
)
