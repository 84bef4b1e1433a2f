"""A pretended card: tensors that report cuda:0, hold their values on the CPU, and obey CUDA's rules.

Every operation passes through `Card`, which

- refuses to mix a tensor of the card with one of the CPU, as CUDA does (0-dimensional CPU tensors, indices
  and copies are exceptions there too);
- records each wait of the host for the card (`waits`), with the line of the package that caused it;
- counts the kernels that eager execution would launch (`kernels`), and the attention kernels that CUDA would
  choose (`attention`).

    pretended.install()                 # once, before the code under test is imported
    with pretended.card() as card:
        ...                             # any code that uses "cuda"
    card.waits, card.kernels

It cannot show: the numerics of CUDA kernels, NCCL, CUDA graphs, real memory, inductor's code.
"""

import collections
import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten

COPIES = {
    aten._to_copy.default,
    aten.copy_.default,
    aten.lift_fresh.default,
    aten._foreach_copy_.default,
    aten.set_.source_Tensor,
}
INDEXED = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._unsafe_index.Tensor,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}
WAITING = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.equal.default,
    aten._local_scalar_dense.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
    aten.unique_consecutive.default,
    aten._linalg_eigh.default,
    aten._linalg_svd.default,
}
"""Operations whose result the host needs: CUDA waits in them."""
NO_KERNEL = frozenset(
    """view _unsafe_view expand permute transpose t slice select unsqueeze squeeze detach alias as_strided
    split unbind _reshape_alias unfold split_with_sizes empty empty_like new_empty empty_strided
    new_empty_strided lift_fresh device is_pinned _local_scalar_dense diagonal view_as_real chunk
    _has_same_storage_numel is_same_size _efficientzerotensor""".split()  # noqa: SIM905
)
"""Operations that launch no kernel."""
TO_NUMPY = "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()"


class CardTensor(torch.Tensor):
    """A tensor of the card; its values are the CPU tensor `inner`."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "CardTensor":
        if inner.dtype in Card.refused:
            raise TypeError(f"the device has no {inner.dtype}")
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device("cpu"),
        )
        made.inner = inner
        return made

    def __init__(self, inner: torch.Tensor) -> None: ...

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"cuda:{self.inner!r}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A file that is read on the CPU, as files of a card's tensors are read here."""
        return self.inner.__reduce_ex__(protocol)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(TO_NUMPY)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(TO_NUMPY)

    def tolist(self) -> Any:
        Card.note("tolist (copy to the host)")
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Card.run(func, args, kwargs or {})


class Card(TorchDispatchMode):
    """The rules and the counts. `quiet` stops counting, for example while a model is made."""

    current: "Card | None" = None
    sync_mode: Any = "default"
    refused: tuple[torch.dtype, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.waits: collections.Counter[str] = collections.Counter()
        self.kernels: collections.Counter[str] = collections.Counter()
        self.attention: collections.Counter[str] = collections.Counter()
        self.quiet = False

    @staticmethod
    def where() -> str:
        """The innermost line of the package on the stack."""
        frame: Any = sys._getframe(2)
        while frame is not None:
            name = frame.f_code.co_filename
            if "/src/consistune/" in name:
                return f"{name.split('/src/')[-1]}:{frame.f_lineno} {frame.f_code.co_name}"
            frame = frame.f_back
        return "?"

    @classmethod
    def note(cls, what: str) -> None:
        """Record a wait of the host."""
        if cls.sync_mode in ("warn", 1):
            warnings.warn(f"called a synchronizing CUDA operation: {cls.where()} {what}", stacklevel=2)
        if cls.sync_mode in ("error", 2):
            raise RuntimeError("called a synchronizing CUDA operation")
        if cls.current is not None and not cls.current.quiet and not _Forward.depth:
            cls.current.waits[f"{cls.where()}: {what}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Card.run(func, args, kwargs or {})

    @classmethod
    def run(cls, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation: check its devices, record waits and kernels, compute on the CPU."""
        if func is torch.ops.prim.device.default:
            return CUDA
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        ours = [x for x in tensors if isinstance(x, CardTensor)]
        name = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else str(func)
        device = _device_asked(func, args, kwargs, tensors, ours)
        to_card = device is not None and device.type == "cuda"
        others = [x for x in tensors if not isinstance(x, CardTensor)]
        if ours and others and func not in COPIES:
            cls._check_devices(func, name, args, others)
        if ours or to_card:
            cls._record(func, name, args, kwargs, device, to_card, bool(ours))
        return _computed(func, args, kwargs, device, to_card, bool(ours))

    @classmethod
    def _check_devices(cls, func: Any, name: str, args: Any, others: list[torch.Tensor]) -> None:
        bad = [x for x in others if x.ndim > 0]
        if func in INDEXED:
            bad = [x for x in bad if x is args[0] or (len(args) > 2 and x is args[2])]
            if not isinstance(args[0], CardTensor):
                bad = [args[0]]
        if name.startswith("_fused_adam"):
            bad = others
        if bad:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found cuda:0 and cpu in "
                f"{func} at {cls.where()}: cpu shapes {[tuple(x.shape) for x in bad]}"
            )
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and not isinstance(first, CardTensor) and func._schema.is_mutable:
            raise RuntimeError(f"in-place on a CPU tensor with a cuda operand: {func} at {cls.where()}")

    @classmethod
    def _record(
        cls, func: Any, name: str, args: Any, kwargs: Any, device: Any, to_card: bool, ours: bool
    ) -> None:
        if func is aten._to_copy.default:
            source = isinstance(args[0], CardTensor)
            target = to_card if device is not None else source
            if source and not target:
                cls.note(f"copy to the host [{args[0].numel()}]")
            elif target and not source and not kwargs.get("non_blocking"):
                cls.note(f"pageable copy to the card [{args[0].numel()}]")
        elif func is aten.copy_.default and isinstance(args[0], CardTensor) != isinstance(
            args[1], CardTensor
        ):
            if not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking"):
                cls.note("copy_ between host and card")
        elif func in WAITING and ours:
            cls.note(name)
        elif func in INDEXED:
            for index in args[1] or ():
                if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
                    cls.note(f"{name} by a mask (nonzero)")
                elif isinstance(index, torch.Tensor) and not isinstance(index, CardTensor) and index.ndim:
                    cls.note(f"{name}: index copied to the card")
        if cls.current is not None and not cls.current.quiet and name not in NO_KERNEL:
            cls.current.kernels[name] += 1

    @classmethod
    def attended(cls, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Record the attention kernel that CUDA would choose (compute capability 9.0)."""
        dense = all(x.stride(-1) == 1 for x in (q, k, v))  # the fused kernels need it
        kind = "math"
        if dense and q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] <= 256:
            kind = "flash"
        elif dense and q.dtype != torch.float64:
            kind = "mem-efficient"
        if cls.current is not None and not cls.current.quiet:
            cls.current.attention[f"{kind} {q.dtype} {tuple(q.shape)} strides {q.stride()}"] += 1


def _device_asked(
    func: Any, args: Any, kwargs: Any, tensors: list[torch.Tensor], ours: list[CardTensor]
) -> torch.device | None:
    """The device that an operation's result shall have; None: its operands'.

    C++ code asks for "the operand's own device", which it takes for the CPU: that means the card.
    """
    if kwargs.get("device") is None:
        return None
    device = torch.device(kwargs["device"])
    if device.type == "cuda":
        return device
    if func is aten._to_copy.default:
        # The backward of a change of dtype names its input's device, a forward derivative its tangent's.
        own = (_Backward.depth and not _Backward.moving) or _Forward.depth
        return CUDA if ours and own else device
    name = func._schema.name.split("::")[-1] if hasattr(func, "_schema") else ""
    if ours and (name.startswith("new_") or name.endswith("_like")):
        return CUDA
    number = func is aten._efficientzerotensor.default and args[0] == []  # its tangent stays on the CPU
    return CUDA if not tensors and (_Backward.depth or (_Forward.depth and not number)) else device


def _computed(
    func: Any, args: Any, kwargs: Any, device: torch.device | None, to_card: bool, ours: bool
) -> Any:
    """The operation on the CPU values, its results on the device where they belong."""
    plain_args, plain = pytree.tree_map_only(CardTensor, lambda x: x.inner, (args, kwargs))
    if device is not None:
        plain = {**plain, "device": torch.device("cpu")}
    if plain.get("pin_memory"):
        plain = {**plain, "pin_memory": False}
    if func is aten._to_copy.default and to_card and not ours:
        plain_args = (plain_args[0].clone(memory_format=torch.preserve_format), *plain_args[1:])
    if to_card and func is aten._efficientzerotensor.default:
        func = aten.zeros.default  # a tangent without memory has no values to hold
    result = func(*plain_args, **plain)
    if func is aten.copy_.default:
        return args[0]
    on_card = ours if device is None else to_card
    if not on_card or func is aten._local_scalar_dense.default:
        return result
    if func is aten._to_copy.default and isinstance(args[0], CardTensor) and result is args[0].inner:
        result = result.clone()
    wrapped = pytree.tree_map_only(torch.Tensor, _on_card, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if ours else wrapped


def _on_card(x: torch.Tensor) -> torch.Tensor:
    return x if isinstance(x, CardTensor) else CardTensor(x)


@contextlib.contextmanager
def card() -> Iterator[Card]:
    """A card for the duration of the block."""
    mode = Card()
    before, Card.current = Card.current, mode
    lift = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with mode:
            yield mode
    finally:
        torch._C._set_only_lift_cpu_tensors(lift)
        Card.current = before


# What torch must be told -----------------------------------------------------------------------------------


class _Backward:
    """Whether the autograd engine runs, and whether it runs the backward of a move between devices."""

    depth = 0
    moving = 0


class _Forward:
    """Whether a forward derivative is taken.

    In it every tensor says that it is on the CPU, so that neither waits nor the CPU's tensors are told from
    the card's. The plain pass, which calls the same code, shows both.
    """

    depth = 0


class _Moved(torch.autograd.Function):
    """A copy to another device whose gradient is copied back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        ctx.device, ctx.dtype = x.device, x.dtype
        return aten._to_copy.default(x, dtype=dtype, device=device)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        _Backward.moving += 1
        try:
            return aten._to_copy.default(grad, dtype=ctx.dtype, device=ctx.device), None, None
        finally:
            _Backward.moving -= 1


class _Generator(torch._C.Generator):
    """A generator that reports the card and draws the CPU's numbers."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        self = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        self.reported = CUDA if torch.device(device).type == "cuda" else torch.device("cpu")
        return self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return getattr(self, "reported", torch.device("cpu"))


class _Stream:
    """A stream or an event; everything here runs in order."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: Any) -> None: ...
    def wait_event(self, _: Any) -> None: ...
    def wait_stream(self, _: Any) -> None: ...
    def synchronize(self) -> None: ...
    def record(self, *_: Any) -> None: ...


def install() -> None:
    """Make torch believe in the card, for the rest of the process.

    Call it before the code under test is imported.
    """
    torch.Generator = _Generator  # type: ignore[misc]
    facts: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: "pretended H100",
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "mem_get_info": lambda *_: (80 << 30, 80 << 30),
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "is_bf16_supported": lambda *_, **__: True,
        "synchronize": lambda *_: None,
        "manual_seed_all": lambda *_: None,
        "_is_in_bad_fork": lambda: False,
        "current_stream": lambda *_: _Stream(),
        "stream": lambda _: contextlib.nullcontext(),
        "set_sync_debug_mode": lambda mode: setattr(Card, "sync_mode", mode),
        "Stream": _Stream,
        "Event": _Stream,
    }
    for name, value in facts.items():
        setattr(torch.cuda, name, value)
    _patch_moves()
    _patch_modules()
    _patch_makers()
    _patch_engine()
    _patch_attention()


def _patch_moves() -> None:
    to = torch.Tensor.to

    def moved(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        other = args[0] if args and isinstance(args[0], torch.Tensor) else kwargs.get("other")
        if other is not None:
            device, dtype, non_blocking, memory_format = other.device, other.dtype, False, None
        else:
            parsed = {key: value for key, value in kwargs.items() if key != "copy"}
            device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **parsed)
        if device is None or device.type == self.device.type:
            if dtype is None and memory_format is None and not kwargs.get("copy"):
                return self
            return to(
                self,
                dtype=dtype or self.dtype,
                copy=kwargs.get("copy", False),
                memory_format=memory_format or torch.preserve_format,
            )
        device = CUDA if device.type == "cuda" else device
        if self.requires_grad:
            return _Moved.apply(self, device, dtype or self.dtype)
        return aten._to_copy.default(
            self,
            dtype=dtype or self.dtype,
            device=device,
            non_blocking=non_blocking,
            memory_format=memory_format or torch.preserve_format,
        )

    torch.Tensor.to = moved  # type: ignore[method-assign,assignment]
    torch.Tensor.cpu = lambda self, *_, **__: self.to(torch.device("cpu"))  # type: ignore[method-assign]
    torch.Tensor.cuda = lambda self, *_, **__: self.to(CUDA)  # type: ignore[method-assign]
    torch.Tensor.pin_memory = lambda self: self  # type: ignore[method-assign]


def _patch_modules() -> None:
    def apply(self: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        for module in self.children():
            module._apply(fn)
        for key, parameter in self._parameters.items():
            if parameter is None:
                continue
            with torch.no_grad():
                new = fn(parameter)
            if not isinstance(new, CardTensor) and not isinstance(parameter, CardTensor):
                parameter.data = new
            elif new is not parameter:
                self._parameters[key] = nn.Parameter(new, parameter.requires_grad)
        for key, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[key] = fn(buffer)
        return self

    nn.Module._apply = apply  # type: ignore[method-assign,assignment]
    nn.Module.cuda = lambda self, *_: self.to(CUDA)  # type: ignore[method-assign]


def _patch_makers() -> None:
    """torch.tensor makes its tensor on the CPU and copies it to the card: so does CUDA, and it waits."""

    def patched(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
            if isinstance(data, torch.Tensor):
                return make(data, *args, **kwargs) if device is None else data.to(device, **kwargs)
            if device is None:
                return make(data, *args, **kwargs)
            if torch.device(device).type == "cuda":
                return make(data, *args, **kwargs, device="cpu").to(CUDA)
            return make(data, *args, **kwargs, device=device)

        return made

    torch.tensor, torch.as_tensor = patched(torch.tensor), patched(torch.as_tensor)
    torch.Tensor.new_tensor = lambda self, data, **kwargs: torch.tensor(  # type: ignore[method-assign]
        data, **{"dtype": self.dtype, "device": self.device, **kwargs}
    )


def _patch_attention() -> None:
    attention = nn.functional.scaled_dot_product_attention

    def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        if isinstance(q, CardTensor):
            Card.attended(q, k, v)
        return attention(q, k, v, **options)

    nn.functional.scaled_dot_product_attention = attended  # type: ignore[assignment]


def _patch_engine() -> None:
    engine = _within(_Backward, torch.autograd.graph._engine_run_backward)
    torch.autograd.graph._engine_run_backward = engine
    torch.autograd._engine_run_backward = engine  # type: ignore[attr-defined]
    torch.func.jvp = _within(_Forward, torch.func.jvp)


def _within(state: type[_Backward | _Forward], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with `state.depth` raised while it runs."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if Card.current is None:
            return function(*args, **kwargs)
        state.depth += 1
        try:
            return function(*args, **kwargs)
        finally:
            state.depth -= 1

    return run
