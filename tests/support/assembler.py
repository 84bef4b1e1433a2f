"""Pickles written opcode by opcode, also in forms that no pickler writes."""

import struct

STOP, MARK, NONE, REDUCE, BUILD, NEWOBJ = b".", b"(", b"N", b"R", b"b", b"\x81"
STACK_GLOBAL = b"\x93"
EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE, EMPTY_SET = b"}", b"]", b")", b"\x8f"
TUPLE1, TUPLE2, MEMOIZE = b"\x85", b"\x86", b"\x94"
PROTO = b"\x80\x04"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def blob(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def tuple_of(*parts: bytes) -> bytes:
    return MARK + b"".join(parts) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + REDUCE


def mapping(**items: bytes) -> bytes:
    return EMPTY_DICT + MARK + b"".join(text(k) + v for k, v in items.items()) + b"u"


def pickled(body: bytes) -> bytes:
    return PROTO + body + STOP


PERSISTENT = name("torch_utils.persistence", "_reconstruct_persistent_obj")
REBUILD = name("torch._utils", "_rebuild_tensor_v2")
NESTED = name("torch.storage", "_load_from_bytes")
ORDERED = call(name("collections", "OrderedDict"))
DTYPE = name("numpy", "dtype")
SCALAR = name("numpy.core.multiarray", "scalar")


def storage_bytes(
    values: bytes, count: int, kind: str = "Float", key: str = "7", trailer: int | None = None
) -> bytes:
    """The legacy form of one storage (edm-pickles §4.2)."""
    sizes = mapping_q({"short": 2, "int": 4, "long": 4}, 4)
    header = (
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00("
        + text("protocol_version")
        + b"q\x01M\xe9\x03"
        + text("little_endian")
        + b"q\x02\x88"
        + text("type_sizes")
        + b"q\x03"
        + sizes
        + b"u."
    )
    number = b"M" + struct.pack("<H", count) if 256 <= count < 65536 else integer(count)
    identity = (
        b"\x80\x02("
        + text("storage")
        + b"q\x00ctorch\n"
        + f"{kind}Storage\nq\x01".encode()
        + text(key)
        + b"q\x02"
        + text("cpu")
        + b"q\x03"
        + number
        + b"Ntq\x04Q.\x80\x02]q\x00"
        + text(key)
        + b"q\x01a."
    )
    return header + identity + struct.pack("<q", count if trailer is None else trailer) + values


def mapping_q(items: dict[str, int], first: int) -> bytes:
    body = b"".join(
        text(key) + b"q" + bytes([first + i]) + b"K" + bytes([value])
        for i, (key, value) in enumerate(items.items(), 1)
    )
    return b"}q" + bytes([first]) + b"(" + body + b"u"


def storage(count: int = 4, **options: object) -> bytes:
    return call(NESTED, blob(storage_bytes(bytes(4 * count), count, **options)))  # type: ignore[arg-type]


def rebuild(store: bytes, *more: bytes, hooks: bytes = ORDERED) -> bytes:
    """A tensor without dimensions."""
    return call(REBUILD, store, integer(0), EMPTY_TUPLE, EMPTY_TUPLE, b"\x89", hooks, *more)


def tensor(
    store: bytes, offset: int = 0, shape: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,)
) -> bytes:
    sizes, steps = (tuple_of(*(integer(n) for n in numbers)) for numbers in (shape, stride))
    return call(REBUILD, store, integer(offset), sizes, steps, b"\x89", ORDERED)


def record(state: bytes) -> bytes:
    return mapping(
        type=text("class"),
        version=integer(6),
        module_src=text("x"),
        class_name=text("EDMPrecond"),
        state=state,
    )


def module(
    parameters: bytes = EMPTY_DICT,
    children: bytes = EMPTY_DICT,
    kwargs: bytes = EMPTY_DICT,
    into: bytes = EMPTY_DICT,
) -> bytes:
    """A persistent module; `into` is the dictionary that becomes its state."""
    items = mapping(
        _parameters=parameters,
        _buffers=EMPTY_DICT,
        _modules=children,
        _init_args=EMPTY_TUPLE,
        _init_kwargs=kwargs,
    )
    return call(PERSISTENT, record(into + items.removeprefix(EMPTY_DICT)))


def snapshot(ema: bytes) -> bytes:
    return pickled(mapping(ema=ema))
