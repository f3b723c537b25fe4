"""Kernels for the GPU: what NumPy computes in many passes over an array is done in one or two there.

A function marked `@on_gpu` is replaced by the one of the same name here when its arrays are on a GPU; the same tests
hold both to the op's definition. Read the marked function first: it says what is computed.

Each kernel is CUDA C for one dtype T, float or double. In kernels of rows a block of threads computes one row.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from nanograd_llm.backend.arrays import xp

Function = TypeVar("Function", bound=Callable[..., Any])


def on_gpu(plain: Function) -> Function:
    """Compute `plain` by the kernel of its name where the first argument is an array of CuPy.

    Other arrays, those of dtypes that CUDA C lacks or that differ, and empty ones are left to `plain`.
    """
    kernel = KERNELS[plain.__name__]

    @functools.wraps(plain)
    def choose(x, *rest):
        if type(x) is np.ndarray or not has_kernels(x):
            return plain(x, *rest)
        floats = [a for a in (x, *rest) if hasattr(a, "dtype") and a.dtype.kind in "fc" and a.ndim]
        is_for_kernel = all(a.size and a.dtype == x.dtype for a in floats)
        return (kernel if is_for_kernel else plain)(x, *rest)

    return choose  # type: ignore[return-value]


def has_kernels(x: Any) -> bool:
    """Is x an array of CuPy, of a dtype for which there are kernels?"""
    return hasattr(xp(x), "RawModule") and x.dtype.char in "fd"


# h: the share of x that gelu lets through
GELU_SHARE = (
    "const T square = min(x * x, T(4096)); "
    "const T h = T(0.5) * tanh(x * (T(0.7978845608028654) + T(0.035677408136300125) * square)) + T(0.5); "
)
SOURCE = r"""
typedef long long Int;
typedef unsigned long long Word;

__device__ T of_block(T x, bool largest) {                 // the sum, or the largest, of one number of each thread
  __shared__ T of_warp[32];
  for (int other = 16; other; other /= 2) {
    T y = __shfl_xor_sync(~0u, x, other);
    x = largest ? fmax(x, y) : x + y;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  x = threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : largest ? T(LOWEST) : T(0);
  for (int other = 16; other; other /= 2) {
    T y = __shfl_xor_sync(~0u, x, other);
    x = largest ? fmax(x, y) : x + y;
  }
  return x;
}
__device__ T sum_of_block(T x) { return of_block(x, false); }
__device__ T largest_of_block(T x) { return of_block(x, true); }
#define EACH(i, n) for (Int i = threadIdx.x; i < (n); i += blockDim.x)

__device__ void add_exp(T x, T& largest, T& sum) {         // sum = Σ exp(x - largest), in one pass over the x
  if (x > largest) { sum = sum * exp(largest - x) + 1; largest = x; }
  else sum += exp(x - largest);
}

extern "C" __global__ void layernorm(const T* x, const T* w, const T* b, T* y, T* xhat, T* r, Int C, double eps) {
  x += blockIdx.x * C; y += blockIdx.x * C; xhat += blockIdx.x * C;
  T sum = 0, rest = 0, squares = 0;
  EACH(i, C) sum += x[i];
  const T mean = sum_of_block(sum) / C;
  EACH(i, C) rest += x[i] - mean;                          // of a mean far from 0, the rounding is seen
  const T rounding = sum_of_block(rest) / C;
  EACH(i, C) { const T centred = x[i] - mean - rounding; squares += centred * centred; }
  const T scale = 1 / sqrt(sum_of_block(squares) / C + T(eps));
  EACH(i, C) {
    const T h = (x[i] - mean - rounding) * scale;
    xhat[i] = h;
    y[i] = h * w[i] + b[i];
  }
  if (threadIdx.x == 0) r[blockIdx.x] = scale;
}

extern "C" __global__ void layernorm_backward(
    const T* dy, const T* w, const T* xhat, const T* r, T* dx, T* product, Int C) {
  dy += blockIdx.x * C; xhat += blockIdx.x * C; dx += blockIdx.x * C; product += blockIdx.x * C;
  T sum = 0, products = 0;
  EACH(i, C) { const T g = dy[i] * w[i]; sum += g; products += g * xhat[i]; }
  const T mean = sum_of_block(sum) / C, mean_product = sum_of_block(products) / C, scale = r[blockIdx.x];
  EACH(i, C) {
    dx[i] = (dy[i] * w[i] - mean - xhat[i] * mean_product) * scale;
    product[i] = dy[i] * xhat[i];
  }
}

// Rows p (queries, keys) of scores. before: keys before the first query's own; none is hidden if that is negative.
extern "C" __global__ void softmax(T* p, Int queries, Int keys, Int before) {
  p += blockIdx.x * keys;
  const Int own = before + blockIdx.x % queries + 1, seen = before < 0 || own > keys ? keys : own;
  T largest = LOWEST, sum = 0;
  EACH(i, seen) add_exp(p[i], largest, sum);
  const T top = largest_of_block(largest);
  T total = sum_of_block(sum * exp(largest - top));
  if (total == 0) total = 1;
  EACH(i, keys) p[i] = i < seen ? exp(p[i] - top) / total : T(0);
}

extern "C" __global__ void cross_entropy(
    T* p, const Int* chosen, const T* weights, const T* scales, T* losses, Int V, double smoothing) {
  p += blockIdx.x * V;
  const Int target = chosen[blockIdx.x];
  const T own = p[target];
  T largest = LOWEST, sum = 0, logits = 0;
  EACH(i, V) {
    if (smoothing) logits += p[i];
    if (i != target) add_exp(p[i], largest, sum);
  }
  const T top = fmax(largest_of_block(largest), own);
  const T others = sum_of_block(sum * exp(largest - top)), e = exp(own - top), total = others + e;
  const T mean = smoothing ? sum_of_block(logits) / V - top : T(0);
  const T scale = total == 0 ? T(0) : scales[blockIdx.x], divisor = total == 0 ? T(1) : total;
  EACH(i, V) {
    T share = exp(p[i] - top) / divisor - T(smoothing / V);
    if (i == target) share -= T(1 - smoothing);
    p[i] = share * scale;
  }
  if (threadIdx.x == 0) {
    const T normaliser = total == 0 ? T(0) : log1p(others + (e - 1)), weight = weights[blockIdx.x];
    const T loss = T(1 - smoothing) * (normaliser - (own - top));
    losses[blockIdx.x] = weight == 0 ? T(0) : weight * (smoothing ? loss + T(smoothing) * (normaliser - mean) : loss);
  }
}

__device__ T gelu(T x) {
  GELU_SHARE
  return x * h;
}

// For one more token of a few sequences: y = x w + b; or y += that; or y = gelu of that. A block computes 8 columns.
extern "C" __global__ void linear_step(
    const T* x, const T* w, const T* b, T* y, Int n, Int m, Int is_added, Int is_activated) {
  __shared__ T sums[1024];
  const Int column = Int(blockIdx.x) * 8 + threadIdx.x % 8;
  x += blockIdx.y * n; y += blockIdx.y * m;
  T sum = 0;
  if (column < m)
    for (Int i = threadIdx.x / 8; i < n; i += 128) sum += x[i] * w[i * m + column];
  sums[threadIdx.x] = sum;
  for (int half = 512; half >= 8; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x < 8 && column < m) {
    sum = sums[threadIdx.x] + b[column];
    y[column] = is_added ? y[column] + sum : is_activated ? gelu(sum) : sum;
  }
}

// Attention of token n, a block for a head: qkv (B, 3, H, D), caches (B, H, length, D), p (B, H, length), y (B, H, D).
extern "C" __global__ void attention_step(
    const T* qkv, T* keys, T* values, T* p, T* y, Int D, Int length, double divisor, Int n) {
  __shared__ T of_warp[32][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, H = gridDim.x;
  const Int head = Int(blockIdx.y) * H + blockIdx.x;
  const T* q = qkv + (Int(blockIdx.y) * 3 * H + blockIdx.x) * D;
  keys += head * length * D; values += head * length * D; p += head * length; y += head * D;
  EACH(d, D) { keys[(n - 1) * D + d] = q[H * D + d]; values[(n - 1) * D + d] = q[2 * H * D + d]; }
  __syncthreads();
  T largest = LOWEST, sum = 0;
  for (Int i = warp; i < n; i += 32) {
    T score = 0;
    for (Int d = lane; d < D; d += 32) score += q[d] * keys[i * D + d];
    for (int other = 16; other; other /= 2) score += __shfl_xor_sync(~0u, score, other);
    score /= T(divisor);
    largest = fmax(largest, score);
    if (lane == 0) p[i] = score;
  }
  largest = largest_of_block(largest);
  EACH(i, n) { const T e = exp(p[i] - largest); sum += e; p[i] = e; }
  const T total = sum_of_block(sum);
  for (Int first = 0; first < D; first += 32) {
    T mixed = 0;
    if (first + lane < D)
      for (Int i = warp; i < n; i += 32) mixed += p[i] * values[i * D + first + lane];
    of_warp[warp][lane] = mixed;
    __syncthreads();
    if (warp == 0 && first + lane < D) {
      for (int w = 1; w < 32; w++) mixed += of_warp[w][lane];
      y[first + lane] = mixed / total;
    }
    __syncthreads();
  }
}

// Philox4x64-10 (see `philox`): thread n writes the eight elements of counter n + 1.
extern "C" __global__ void drop(T* mask, Int size, Word key, Word second_key, Word threshold, double scale) {
  const Int n = Int(blockIdx.x) * blockDim.x + threadIdx.x;
  Word a = n + 1, b = 0, c = 0, d = 0;
  for (int round = 0; round < 10; round++) {
    const Word high_a = __umul64hi(a, MULTIPLIER), high_c = __umul64hi(c, SECOND_MULTIPLIER);
    const Word low_a = a * MULTIPLIER, low_c = c * SECOND_MULTIPLIER;
    a = high_c ^ b ^ key; b = low_c; c = high_a ^ d ^ second_key; d = low_a;
    key += INCREMENT; second_key += SECOND_INCREMENT;
  }
  const Word words[4] = {a, b, c, d};
  for (int j = 0; j < 8 && 8 * n + j < size; j++) {
    const Word half = (words[j / 2] >> 32 * (j % 2)) & 0xFFFFFFFF;
    mask[8 * n + j] = half < threshold ? T(0) : T(scale);
  }
}
"""
PHILOX_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
PHILOX_INCREMENTS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B  # of the key: the golden ratio and √3 - 1


@functools.cache
def _compiled(library: Any, char: str, name: str) -> Any:
    """A kernel for float32 ("f") or float64 ("d"). CuPy compiles it, and keeps it on disk for later processes."""
    return _module(library, char).get_function(name)


@functools.cache
def _module(library: Any, char: str) -> Any:
    names = {
        "T": "float" if char == "f" else "double",
        "LOWEST": repr(float(np.finfo(char).min)),
        "GELU_SHARE": GELU_SHARE,
    }
    for prefix, name, pair in (("", "MULTIPLIER", PHILOX_MULTIPLIERS), ("", "INCREMENT", PHILOX_INCREMENTS)):
        names |= {f"{prefix}{name}": f"{pair[0]}ull", f"SECOND_{name}": f"{pair[1]}ull"}
    return library.RawModule(code="".join(f"#define {name} {value}\n" for name, value in names.items()) + SOURCE)


def prepared(name: str, blocks: tuple[int, ...], threads: int, x: Any, *rest: Any) -> Callable[..., None]:
    """A function that runs a kernel on these contiguous arrays and numbers, and on those that it is called with."""
    kernel, arguments = _compiled(xp(x), x.dtype.char, name), (x, *map(_as_c, rest))
    return lambda *more: kernel(blocks, (threads,), (*arguments, *map(_as_c, more)))


def _launch(name: str, blocks: int, threads: int, x: Any, *rest: Any) -> None:
    prepared(name, (blocks,), threads, x, *rest)()


def _as_c(x: Any) -> Any:
    """Integers and fractions are passed as long long and double."""
    return np.int64(x) if isinstance(x, int) else np.float64(x) if isinstance(x, float) else x


def _threads(row: int) -> int:
    """Threads for a row of this length: about four elements each, in whole warps, at most 512."""
    return min(512, max(32, 32 * math.ceil(row / 128)))


def _contiguous(x: Any) -> Any:
    return xp(x).ascontiguousarray(x)


@functools.cache
def _elementwise(library: Any, inputs: str, outputs: str, code: str, name: str) -> Any:
    return library.ElementwiseKernel(inputs, outputs, code, name)


GELU = GELU_SHARE + "y = x * h; "
GELU_SLOPE = "slope = h + y * (1 - h) * (T(1.5957691216057308) + T(0.21406444881780075) * square);"


def _gelu_into(x, y, slope=None):
    if slope is None:
        return _elementwise(xp(x), "T x", "T y", GELU, "gelu")(x, y)
    return _elementwise(xp(x), "T x", "T y, T slope", GELU + GELU_SLOPE, "gelu_and_slope")(x, y, slope)


def _normalise(x, w, b, eps):
    x, (N, C) = _contiguous(x), x.shape
    y, xhat, r = xp(x).empty_like(x), xp(x).empty_like(x), xp(x).empty((N, 1), x.dtype)
    _launch("layernorm", N, _threads(C), x, _contiguous(w), _contiguous(b), y, xhat, r, C, float(eps))
    return y, xhat, r


def _normalise_backward(dy, w, xhat, r):
    dy, (N, C) = _contiguous(dy), dy.shape
    dx, product = xp(dy).empty_like(dy), xp(dy).empty_like(dy)
    _launch("layernorm_backward", N, _threads(C), dy, _contiguous(w), xhat, r, dx, product, C)
    ones = xp(dy).ones(N, dy.dtype)
    return dx, ones @ product, ones @ dy


def _logits_to_gradient(logits, chosen, weights, count, label_smoothing):
    weights = weights.astype(logits.dtype)
    losses, scales = xp(logits).empty_like(weights), (weights / count).astype(logits.dtype)
    N, V = logits.shape
    arrays = logits, chosen.astype(np.int64), weights, scales, losses
    _launch("cross_entropy", N, 1024, *arrays, V, float(label_smoothing))
    return [losses.sum()]


ADAMW = """
    const T g = gradient * T(scale);
    m += (g - m) * T(one_minus_beta1);
    v += (g * g - v) * T(one_minus_beta2);
    const T kept = i < decayed ? p * T(decay) : p;
    p = kept - m / (sqrt(v) + T(eps)) * T(rate);
"""
RATES = "float64 rate, float64 eps, float64 decay, float64 scale, float64 one_minus_beta1, float64 one_minus_beta2"


def _update_block(p, m, v, gradient, rates, one_minus_beta1, one_minus_beta2, decayed):
    kernel = _elementwise(xp(p), f"T gradient, {RATES}, int64 decayed", "T p, T m, T v", ADAMW, "adamw")
    factors = rates.rate, rates.eps, rates.decay, rates.scale, one_minus_beta1, one_minus_beta2
    kernel(gradient, *factors, decayed, p, m, v)


def _write_mask(mask, key, threshold, scale):
    threads = math.ceil(mask.size / 8)
    _launch("drop", math.ceil(threads / 256), 256, mask, mask.size, *key, np.uint64(threshold), float(scale))


FEW_SEQUENCES = 8  # with more, cuBLAS multiplies faster than the kernel for one token


class GPTBlockStep:
    """A block of GPT for one more token of each sequence, in seven kernels for a few: see `inference.decoder`.

    layers: weight and bias (or None) of the first norm, qkv, out, the second norm, up and down.
    keys, values: of the cache, (B, H, T, D). x: the residual stream (B, C), to which the block's output is added.
    """

    def __init__(
        self, layers: Sequence[tuple[Any, Any]], eps: Sequence[float], divisor: float, keys: Any, values: Any, x: Any
    ):
        (B, C), (_, H, T, D), arrays = x.shape, keys.shape, xp(x)
        parts: list[list[Any]] = [[a if a is None else _contiguous(a) for a in layer] for layer in layers]
        norm_1, qkv, out, norm_2, up, down = parts
        normed, xhat, mixed = (arrays.empty_like(x) for _ in range(3))
        r, heads = arrays.empty((B, 1), x.dtype), arrays.empty((B, 3 * C), x.dtype)
        p, active = arrays.empty((B, H, T), x.dtype), arrays.empty((B, up[0].shape[1]), x.dtype)

        def linear(a: Any, layer: Any, y: Any, is_added: int = 0, is_activated: int = 0) -> Callable[..., None]:
            (w, b), (n, m) = layer, layer[0].shape
            b = arrays.zeros(m, w.dtype) if b is None else b
            if B > FEW_SEQUENCES:
                return functools.partial(_linear_of_many, a, w, b, y, is_added, is_activated)
            return prepared("linear_step", (-(-m // 8), B), 1024, a, w, b, y, n, m, is_added, is_activated)

        def norm(layer: Any, eps: float) -> Callable[..., None]:
            return prepared("layernorm", (B,), _threads(C), x, *layer, normed, xhat, r, C, eps)

        self.before = norm(norm_1, eps[0]), linear(normed, qkv, heads)
        self.attend = prepared("attention_step", (H, B), 1024, heads, keys, values, p, mixed, D, T, divisor)
        joined, widened = linear(mixed, out, x, is_added=1), linear(normed, up, active, is_activated=1)
        self.after = joined, norm(norm_2, eps[1]), widened, linear(active, down, x, is_added=1)

    def __call__(self, n: int) -> None:
        """Add the block's output to the stream. n: the tokens of a sequence so far, the new one included."""
        for run in self.before:
            run()
        self.attend(n)
        for run in self.after:
            run()


def _linear_of_many(x: Any, w: Any, b: Any, y: Any, is_added: int, is_activated: int) -> None:
    """What `linear_step` computes, by cuBLAS: y = x w + b, or y += that, or y = gelu of that."""
    if is_added:
        np.add(y, b, out=y)
    else:
        y[...] = b
    _product(x, w, add_to=y)
    if is_activated:
        _gelu_into(y, y)


QUERIES = 256  # of a block of attention: fewer would leave parts of a GPU idle, more compute more hidden scores


def _attend_blocks(q, k, v, y, shown, dropped, ahead, divisor, recorded):
    q, k, v = map(_contiguous, (q, k, v))
    n, m = q.shape[-2], k.shape[-2]
    bounds = None if shown is None else np.where(shown > 0, np.inf, -np.inf).astype(q.dtype).swapaxes(-1, -2)
    blocks = []
    for start in range(0, n, QUERIES):
        rows = slice(start, min(start + QUERIES, n))
        seen = m if ahead is None else min(m, ahead + rows.stop)
        p = _product(q[..., rows, :], k[..., :seen, :].swapaxes(-1, -2), 1 / divisor)  # (..., queries, keys)
        if bounds is not None and seen > m - bounds.shape[-1]:
            padded = p[..., m - bounds.shape[-1] :]
            np.fmin(padded, bounds[..., : padded.shape[-1]], out=padded)
        before = -1 if ahead is None else ahead + start
        _launch("softmax", p.size // seen, _threads(seen), p, p.shape[-2], seen, before)
        mask = None if dropped is None else dropped[..., :seen, rows].swapaxes(-1, -2)
        y[..., rows, :] = _product(p if mask is None else p * mask, v[..., :seen, :])
        if recorded:
            blocks.append((rows, seen, p, mask))
    return blocks


def _backward_blocks(dy, y, q, k, v, dq, dk, dv, blocks, divisor):
    mean = (dy * y).sum(axis=-1, keepdims=True) * (1 / divisor)  # (..., queries, 1)
    dy, q, k, v = map(_contiguous, (dy, q, k, v))
    sums_k, sums_v = xp(k).zeros_like(k), xp(v).zeros_like(v)
    for rows, seen, p, mask in blocks:
        dyb, qb = dy[..., rows, :], q[..., rows, :]
        ds = _product(dyb, v[..., :seen, :].swapaxes(-1, -2), 1 / divisor)
        if mask is not None:
            ds *= mask
        _elementwise(xp(p), "T p, T mean", "T ds", "ds = (ds - mean) * p", "softmax_backward")(
            p, mean[..., rows, :], ds
        )
        dq[..., rows, :] = _product(ds, k[..., :seen, :])
        weights = p if mask is None else p * mask
        _product(weights.swapaxes(-1, -2), dyb, add_to=sums_v[..., :seen, :])
        _product(ds.swapaxes(-1, -2), qb, add_to=sums_k[..., :seen, :])
    dk[...], dv[...] = sums_k, sums_v


def _product(a: Any, b: Any, scale: float = 1.0, add_to: Any = None) -> Any:
    """scale * a b, or added to an array: matrices (..., n, k)·(..., k, m) -> (..., n, m) of the same leading axes.

    CuPy's own product copies transposed operands, which for attention takes as long as the product.
    """
    arrays = xp(a)
    (n, k), m = a.shape[-2:], b.shape[-1]
    y = arrays.empty((*a.shape[:-1], m), a.dtype) if add_to is None else add_to
    # cuBLAS has columns first, so it is given yᵀ = bᵀ aᵀ
    (a, turn_a, ld_a, step_a), (b, turn_b, ld_b, step_b) = map(as_cublas, (a, b))
    _, _, ld_y, step_y = as_cublas(y)
    factors = np.array([scale, 0 if add_to is None else 1], a.dtype)
    gemm = getattr(arrays.cuda.cublas, {"f": "sgemmStridedBatched", "d": "dgemmStridedBatched"}[a.dtype.char])
    place, beta = factors.ctypes.data, factors.ctypes.data + factors.itemsize
    shapes = (b.data.ptr, ld_b, step_b, a.data.ptr, ld_a, step_a, beta, y.data.ptr, ld_y, step_y)
    gemm(arrays.cuda.get_cublas_handle(), turn_b, turn_a, m, n, k, place, *shapes, math.prod(y.shape[:-2]))
    return y


def as_cublas(x: Any) -> tuple[Any, int, int, int]:
    """(x, is it transposed?, elements from row to row, and from matrix to matrix); of a copy, if x has no such form."""
    rows, columns = x.shape[-2:]
    *steps, down, right = (step // x.itemsize for step in x.strides)
    lead = [(size, step) for size, step in zip(x.shape, steps) if size > 1]
    if all(outer == size * step for (_, outer), (size, step) in zip(lead, lead[1:])):
        step = lead[-1][1] if lead else 0
        if (right == 1 or columns == 1) and (down >= columns or rows == 1):
            return x, 0, max(down, columns), step
        if (down == 1 or rows == 1) and (right >= rows or columns == 1):
            return x, 1, max(right, rows), step
    return as_cublas(x.copy())


KERNELS = {
    "_gelu_into": _gelu_into,
    "_normalise": _normalise,
    "_normalise_backward": _normalise_backward,
    "_logits_to_gradient": _logits_to_gradient,
    "_update_block": _update_block,
    "_write_mask": _write_mask,
    "_attend_blocks": _attend_blocks,
    "_backward_blocks": _backward_blocks,
}
