"""Arrays of NumPy or CuPy: the library of an array, the device it is on, and moving it to another.

The only file that imports CuPy, and only once a GPU is used. NumPy's functions call CuPy when they get a CuPy array
(NEP 13 and 18), so ops are written with `np.`, and use `xp(x)` or `beside` only where they create an array.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from types import ModuleType
from typing import Any

import numpy as np

from nanograd_llm.errors import DeviceError, DtypeError

DEVICES = ("cpu", "cuda")
gpu_in_use: set[str] = set()  # {"cuda"} once an array on a GPU was met: until then no operands are on two devices
_checked: ModuleType | None = None  # CuPy, once it has computed something
_default = "cpu"
_tf32: bool | None = None  # what `allow_tf32` chose


def xp(x: Any) -> ModuleType:
    """The library of an array: `numpy`, or `cupy` for an array on a GPU."""
    if type(x) is not np.ndarray and type(x).__module__.partition(".")[0] == "cupy":
        import cupy

        gpu_in_use.add("cuda")
        return cupy
    return np


@functools.lru_cache(maxsize=64)
def constant(size: int, number: Any, dtype: Any, arrays: Any) -> Any:
    """An array of `size` equal numbers of the library `arrays`, made once: nobody may write into it."""
    made = arrays.full(size, number, dtype)
    if arrays is np:
        made.flags.writeable = False
    return made


def is_array(x: Any) -> bool:
    """Is x an array (of NumPy or CuPy) or a NumPy scalar, rather than a Python number or a sequence?"""
    return isinstance(x, (np.ndarray, np.generic)) or xp(x) is not np


def device_of(x: Any) -> str:
    """Where an array is: "cpu", or "cuda" for a GPU."""
    return "cpu" if xp(x) is np else "cuda"


def library(device: str) -> ModuleType:
    """The library whose arrays are on this device: `numpy` for "cpu", `cupy` for "cuda".

    Raises DeviceError for another name; for "cuda" also if CuPy is missing or cannot compute, with what to install.
    """
    if device not in DEVICES:
        raise DeviceError(f"device is {device!r}; choose cpu or cuda")
    return np if device == "cpu" else _cupy()


def to_device(x: Any, device: str) -> Any:
    """x as an array on this device; without a copy if it is there already.

    Raises DeviceError as `library`, and if the GPU has no memory left; DtypeError for a dtype that GPUs do not have.
    """
    arrays = library(device)
    if arrays is np:
        return to_host(x)
    if device_of(x) == device:
        return x
    x = np.asarray(x)
    if x.dtype.kind not in "fiubc" or x.dtype.itemsize > (16 if x.dtype.kind == "c" else 8):
        raise DtypeError(f"a GPU has no {x.dtype}; convert the array first, e.g. astype('float32')")
    try:
        return arrays.asarray(x)
    except MemoryError as error:
        raise gpu_memory_error(error, f"moving {x.nbytes / 2**20:,.0f} MiB to the GPU") from error


def to_host(x: Any) -> np.ndarray:
    """x as a NumPy array; without a copy if it is one. Waits until the GPU has computed it."""
    return np.asarray(x) if xp(x) is np else x.get()


def beside(x: Any, like: Any) -> Any:
    """x (an array, list or number) as an array on the device of `like`, to which NumPy arrays are copied.

    Raises DeviceError if x is on a GPU and `like` is not.
    """
    device = device_of(like)
    if device == "cpu" and device_of(x) != "cpu":
        raise DeviceError("an array is on cuda, and the one that it is used with on cpu; move one, with .to(device)")
    return np.asarray(x) if device == "cpu" else to_device(x, device)


class use_device:
    """From now on, or inside a `with` block, new Tensors and models are on this device, in all threads.

        ng.use_device("cuda")
        model = ng.GPT(config)      # on the GPU

    An array that is on a GPU already stays there. Raises DeviceError as `library`.
    """

    def __init__(self, device: str):
        global _default
        library(device)
        self.before, _default = _default, device

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        global _default
        _default = self.before


def default_device() -> str:
    """Where new Tensors and models are put: "cpu", unless `use_device` chose another."""
    return _default


def on_default_device(x: Any) -> Any:
    """A NumPy array on the default device; an array on a GPU unchanged."""
    return x if _default == "cpu" or device_of(x) == _default else to_device(x, _default)


def allow_tf32(allowed: bool) -> None:
    """May products of float32 on a GPU round their factors to 10 bits (TF32), which is several times faster?

    CuPy reads this from the environment variable CUPY_TF32 at the first such product of the process, and keeps to it,
    so call it before; not allowed unless that variable is 1. Raises DeviceError if the choice was another before.
    """
    global _tf32
    if _tf32 not in (None, allowed):
        raise DeviceError(
            f"allow_tf32 is {allowed}, but the first trainer on a GPU had {_tf32}, and CuPy cannot change this later; "
            "start a new process"
        )
    _tf32 = allowed
    os.environ["CUPY_TF32"] = str(int(allowed))


def _cupy() -> ModuleType:
    """CuPy, after it has computed something. Raises DeviceError with what to do if it is missing or does not work."""
    global _checked
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(f"no GPU can be used: CuPy cannot be imported ({error}); {_advice()}") from None
    if cupy is not _checked:
        try:
            cupy.arange(3).sum().get()
        except Exception as error:  # CuPy's own classes, and ImportError for a missing library of CUDA
            raise DeviceError(f"no GPU can be used: {_one_line(error)}; {_advice(cupy)}") from None
        _checked = cupy
        gpu_in_use.add("cuda")
    return cupy


def driver_cuda() -> int | None:
    """The version of CUDA that the NVIDIA driver supports, such as 13; None if there is no driver."""
    version = ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        found = driver.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value // 1000 if found == 0 and version.value else None


def install_line(cuda: int) -> str:
    """What to type to install CuPy for this version of CUDA, with the libraries that it needs."""
    extra = f"cuda{12 if cuda < 13 else 13}"
    return f'pip install "cupy-{extra}x[ctk]", or from a checkout pip install ".[{extra}]"'


def _advice(cupy: Any = None) -> str:
    """What to do, for what is found on this machine: the driver, and the CUDA that CuPy was built for."""
    cuda = driver_cuda()
    if cuda is None:
        return "no NVIDIA driver was found: install one (nvidia.com/drivers), or use device cpu"
    if cuda < 12:
        return f"the NVIDIA driver supports CUDA {cuda}: update it to one for CUDA 12 or 13, or use device cpu"
    built = cupy.cuda.runtime.runtimeGetVersion() // 1000 if cupy is not None else cuda
    if built > cuda:
        return (
            f"CuPy is built for CUDA {built}, and the driver supports CUDA {cuda}: "
            f"pip uninstall cupy-cuda{built}x, then {install_line(cuda)}"
        )
    if cupy is None:
        return f"the driver supports CUDA {cuda}: {install_line(cuda)}"
    return f"if a library of CUDA is missing: {install_line(built)}; else check nvidia-smi and CUDA_VISIBLE_DEVICES"


def gpu_memory_error(error: MemoryError, doing: str) -> Exception:
    """The error to raise in place of a MemoryError of NumPy's or CuPy's. doing: what needed the memory, in words."""
    if type(error).__module__.partition(".")[0] != "cupy":
        return MemoryError(f"{doing}: {error}")
    return DeviceError(f"{doing}: the GPU is out of memory: {_one_line(error)}; a smaller batch or model needs less")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# NumPy 1 converts a float32 without axes to float64 when it is combined with a Python number. Its `result_type` ignores
# the width of arrays without axes that stand beside dtypes, so it is called with dtypes only.
SCALARS_WIDEN = np.result_type(np.float32(1), 1.0) == np.float64


def as_array(x: Any, *made_of: Any) -> Any:
    """A scalar, which NumPy returns in place of an array without axes, as an array; anything else unchanged.

    made_of: the arrays it was computed from; the result is not wider than they are.
    """
    if not isinstance(x, (np.generic, int, float, complex)):
        return x
    x = np.asarray(x)
    if gpu_in_use and any(device_of(a) != "cpu" for a in made_of):
        return to_device(x, "cuda")
    return no_wider(x, *made_of)


def no_wider(x: Any, *made_of: Any) -> Any:
    """An array of floats or complex numbers, narrowed if NumPy 1 made it wider than the arrays it was computed from."""
    if not SCALARS_WIDEN or x.dtype.kind not in "fc":
        return x
    arrays = [a for a in made_of if isinstance(a, (np.ndarray, np.generic))]
    dtypes = [a.dtype for a in arrays if a.dtype.kind == x.dtype.kind]
    return x.astype(np.result_type(*dtypes), copy=False) if dtypes else x
