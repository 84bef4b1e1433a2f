"""Files that must be refused, written opcode by opcode: {what they try: the bytes}."""

import struct

from tests.support.assembler import (
    BUILD,
    DTYPE,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_SET,
    EMPTY_TUPLE,
    MARK,
    MEMOIZE,
    NESTED,
    NEWOBJ,
    NONE,
    ORDERED,
    PERSISTENT,
    PROTO,
    REBUILD,
    REDUCE,
    SCALAR,
    STOP,
    TUPLE1,
    blob,
    call,
    integer,
    mapping,
    module,
    name,
    pickled,
    rebuild,
    record,
    snapshot,
    storage,
    storage_bytes,
    tensor,
    text,
    tuple_of,
)

CALLS = {
    f"{mod}.{attr}": pickled(mapping(ema=call(name(mod, attr), text("x"))))
    for mod, attr in [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "__import__"),
        ("builtins", "open"),
        ("builtins", "print"),
        ("__builtin__", "eval"),
        ("__builtin__", "set"),
        ("builtins", "set"),
        ("builtins", "object"),
        ("importlib", "import_module"),
        ("runpy", "run_path"),
        ("copyreg", "_reconstructor"),
        ("copyreg", "__newobj__"),
        ("copyreg", "add_extension"),
        ("functools", "partial"),
        ("operator", "attrgetter"),
        ("operator", "methodcaller"),
        ("types", "FunctionType"),
        ("types", "CodeType"),
        ("marshal", "loads"),
        ("pickle", "loads"),
        ("_pickle", "loads"),
        ("torch", "load"),
        ("torch", "Size"),
        ("torch", "device"),
        ("torch", "FloatStorage"),
        ("torch.serialization", "load"),
        ("torch.storage", "_load_from_bytes.__globals__"),
        ("torch._utils", "_rebuild_parameter_with_state"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
        ("torch.jit", "load"),
        ("torch.hub", "load"),
        ("numpy", "load"),
        ("numpy", "memmap"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy.core.multiarray", "fromfile"),
        ("_codecs", "encode"),
        ("webbrowser", "open"),
        ("shutil", "rmtree"),
        ("socket", "socket"),
        ("ctypes", "CDLL"),
        ("torch_utils.persistence", "persistent_class"),
        ("torch_utils.persistence", "_src_to_module"),
        ("collections", "OrderedDict.__init__"),
        ("collections ", "OrderedDict"),
        ("Collections", "OrderedDict"),
        ("consistune.nn.store", "load"),
        ("a\nb\x1b[31m", "c\r\nd"),
    ]
}

GETATTR = name("builtins", "getattr")
F8 = call(DTYPE, text("f8"), b"\x89", b"\x88")
ORDER = tuple_of(integer(3), text("<"), NONE, NONE, NONE, integer(-1), integer(-1), integer(0))
MODULE_DICT = name("torch.nn.modules.container", "ModuleDict") + EMPTY_TUPLE + NEWOBJ
NDARRAY = call(
    name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), EMPTY_TUPLE, blob(b"b")
)


def nested(data: bytes) -> bytes:
    return snapshot(module(mapping(w=tensor(call(NESTED, blob(data))))))


FORBIDDEN = {
    "INST": PROTO + MARK + b"iposix\nsystem\n" + STOP,
    "OBJ": PROTO + MARK + text("x") + b"o" + STOP,
    "EXT1": PROTO + b"\x82\x01" + STOP,
    "EXT2": PROTO + b"\x83\x01\x00" + STOP,
    "EXT4": PROTO + b"\x84\x01\x00\x00\x00" + STOP,
    "PERSID": PROTO + b"Px\n" + STOP,
    "BINPERSID": pickled(text("x") + b"Q"),
    "NEWOBJ_EX": pickled(ORDERED + EMPTY_TUPLE + EMPTY_DICT + b"\x92"),
    "INT": pickled(b"I" + b"9" * 5000 + b"\n"),
    "LONG": pickled(b"L" + b"9" * 5000 + b"L\n"),
    "FLOAT": pickled(b"F1e999999\n"),
    "STRING": pickled(b"S'x'\n"),
    "UNICODE": pickled(b"Vx\n"),
    "GET": pickled(b"g0\n"),
    "PUT": pickled(NONE + b"p0\n"),
    "DUP": pickled(NONE + b"2"),
    "LONG1 of 255 bytes": pickled(b"\x8a\xff" + b"\xff" * 255),
    "LONG4": pickled(b"\x8b" + struct.pack("<i", 1 << 30)),
    "LONG4 negative": pickled(b"\x8b" + struct.pack("<i", -1)),
    "BYTEARRAY8": pickled(b"\x96" + struct.pack("<Q", 1 << 60)),
    "NEXT_BUFFER": pickled(b"\x97"),
    "READONLY_BUFFER": pickled(NONE + b"\x98"),
    "ADDITEMS": pickled(EMPTY_SET + MARK + NONE + b"\x90"),
    "FROZENSET": pickled(MARK + b"\x91"),
    "an unknown opcode": pickled(b"\xff"),
    "protocol 1": b"\x80\x01" + NONE + STOP,
    "protocol 255": b"\x80\xff" + NONE + STOP,
    "protocol said twice": pickled(PROTO + NONE),
    "no protocol": b"cposix\nsystem\n(S'x'\ntR.",
}

LENGTHS = {
    f"{label} of {length}": PROTO
    + code
    + struct.pack(form, length & ((1 << (8 * struct.calcsize(form))) - 1))
    for label, code, form in [
        ("BINBYTES8", b"\x8e", "<Q"),
        ("BINUNICODE8", b"\x8d", "<Q"),
        ("BINBYTES", b"B", "<I"),
        ("BINUNICODE", b"X", "<I"),
        ("FRAME", b"\x95", "<Q"),
        ("SHORT_BINBYTES", b"C", "<B"),
    ]
    for length in (-1, 1 << 62, (1 << 31) - 1, 200)
}

MISUSE = {
    "a call of a dictionary": pickled(EMPTY_DICT + EMPTY_TUPLE + REDUCE),
    "a call of text": pickled(text("os.system") + EMPTY_TUPLE + REDUCE),
    "a call of a persistent object": pickled(module() + EMPTY_TUPLE + REDUCE),
    "a call of a tensor": pickled(tensor(storage()) + EMPTY_TUPLE + REDUCE),
    "a call of getattr's result": pickled(call(call(GETATTR, module(), text("__class__")), text("x"))),
    "getattr of a global": pickled(call(GETATTR, name("numpy", "ndarray"), text("tofile"))),
    "getattr of getattr": pickled(call(GETATTR, call(GETATTR, module(), text("a")), text("__globals__"))),
    "getattr with a default": pickled(call(GETATTR, module(), text("a"), NONE)),
    "a call without a tuple": pickled(PERSISTENT + EMPTY_DICT + REDUCE),
    "a call of ModuleDict": pickled(call(name("torch.nn.modules.container", "ModuleDict"))),
    "a call of ndarray": pickled(call(name("numpy", "ndarray"), integer(1 << 30))),
    "a new persistent object": pickled(PERSISTENT + EMPTY_TUPLE + NEWOBJ),
    "a new ModuleDict with arguments": pickled(MODULE_DICT[:-2] + tuple_of(text("x")) + NEWOBJ),
    "a new object of text": pickled(text("x") + EMPTY_TUPLE + NEWOBJ),
    "a name that is bytes": pickled(blob(b"os") + text("system") + b"\x93"),
    "a state for a persistent object": pickled(module() + EMPTY_DICT + BUILD),
    "a state for a global": pickled(GETATTR + mapping(__setstate__=text("x")) + BUILD),
    "a state for a dictionary": pickled(EMPTY_DICT + mapping(a=NONE) + BUILD),
    "a state for a tensor": pickled(tensor(storage()) + mapping(storage=NONE) + BUILD),
    "a state that is a pair": pickled(MODULE_DICT + tuple_of(EMPTY_DICT, mapping(__class__=NONE)) + BUILD),
    "a state twice": pickled(MODULE_DICT + EMPTY_DICT + BUILD + EMPTY_DICT + BUILD),
    "an OrderedDict of pairs": pickled(call(name("collections", "OrderedDict"), EMPTY_LIST)),
    "a key that is a tuple": pickled(EMPTY_DICT + EMPTY_TUPLE + NONE + b"s"),
    "a key that is a global": pickled(EMPTY_DICT + GETATTR + NONE + b"s"),
    "a key that is a float": pickled(EMPTY_DICT + b"G" + bytes(8) + NONE + b"s"),
    "an enormous key": pickled(EMPTY_DICT + integer(1 << 40) + NONE + b"s"),
    "items without a value": pickled(EMPTY_DICT + MARK + text("a") + b"u"),
    "items for a list": pickled(EMPTY_LIST + text("a") + NONE + b"s"),
    "an element for a tuple": pickled(EMPTY_TUPLE + NONE + b"a"),
    "elements for a dictionary": pickled(EMPTY_DICT + MARK + NONE + b"e"),
    "an empty stack": pickled(b""),
    "an empty stack for a tuple": pickled(TUPLE1),
    "an empty stack for a call": pickled(REDUCE),
    "an empty stack for a memo": pickled(MEMOIZE),
    "a mark too few": pickled(b"t"),
    "a mark too many": pickled(MARK + NONE),
    "a pop of nothing": pickled(b"0"),
    "a pop of no mark": pickled(b"1"),
    "a memo that is not there": pickled(b"h\x00"),
    "an enormous memo": pickled(NONE + b"r\xff\xff\xff\xff" + b"j\xfe\xff\xff\xff"),
    "two values": pickled(NONE + NONE),
    "bytes after the end": pickled(EMPTY_DICT) + b"\x80\x04cposix\nsystem\n.",
    "text that is not UTF-8": pickled(b"\x8c\x01\xff"),
    "a surrogate": pickled(b"\x8c\x03\xed\xa0\x80"),
}

TENSORS = {
    "a nested pickle that calls": nested(b"\x80\x02cposix\nsystem\nX\x01\x00\x00\x00xq\x00\x85R."),
    "a nested zip": nested(b"PK\x03\x04" + bytes(200)),
    "an empty nested storage": nested(b""),
    "a nested storage of another type": nested(storage_bytes(bytes(16), 4, kind="Untyped")),
    "a nested storage with another name": nested(
        storage_bytes(bytes(16), 4).replace(b"ctorch\nFloatStorage", b"cposix\nFloatStorage")
    ),
    "a nested storage elsewhere": nested(storage_bytes(bytes(16), 4).replace(b"cpu", b"gpu")),
    "a nested storage with a wrong key length": nested(
        storage_bytes(bytes(16), 4, key="77").replace(b"X\x02\0\0\0" + b"77", b"X\x03\0\0\0" + b"77")
    ),
    "a nested storage with two counts": nested(storage_bytes(bytes(16), 4, trailer=5)),
    "a nested storage of negative count": nested(storage_bytes(b"", -1)),
    "a nested storage that promises": nested(storage_bytes(bytes(16), 1 << 30)),
    "a nested storage with more": nested(storage_bytes(bytes(17), 4)),
    "a nested storage from text": snapshot(module(mapping(w=tensor(call(NESTED, text("x" * 5000)))))),
    "a storage called twice": pickled(call(NESTED, blob(b""), blob(b""))),
    "a negative offset": snapshot(module(mapping(w=tensor(storage(), offset=-1)))),
    "an offset beyond": snapshot(module(mapping(w=tensor(storage(), offset=1)))),
    "a negative size": snapshot(module(mapping(w=tensor(storage(), shape=(-4,))))),
    "a size beyond": snapshot(module(mapping(w=tensor(storage(), shape=(5,))))),
    "a stride beyond": snapshot(module(mapping(w=tensor(storage(), stride=(2,))))),
    "a negative stride": snapshot(module(mapping(w=tensor(storage(), stride=(-1,))))),
    "a stride of zero": snapshot(module(mapping(w=tensor(storage(), shape=(1 << 40,), stride=(0,))))),
    "sizes that overflow": snapshot(module(mapping(w=tensor(storage(), shape=(1 << 62, 4), stride=(0, 0))))),
    "more sizes than strides": snapshot(module(mapping(w=tensor(storage(), shape=(2, 2))))),
    "a thousand dimensions": snapshot(
        module(mapping(w=tensor(storage(), shape=(1,) * 1000, stride=(1,) * 1000)))
    ),
    "sizes that are text": snapshot(
        module(mapping(w=call(REBUILD, storage(), integer(0), text("4"), text("1"), b"\x89", ORDERED)))
    ),
    "a boolean size": snapshot(
        module(mapping(w=call(REBUILD, storage(), integer(0), b"\x88\x85", b"\x88\x85", b"\x89", ORDERED)))
    ),
    "a hook": snapshot(module(mapping(w=rebuild(storage(), hooks=mapping(h=NONE))))),
    "a seventh argument": snapshot(module(mapping(w=rebuild(storage(), EMPTY_DICT)))),
    "a tensor of no storage": snapshot(module(mapping(w=rebuild(NONE)))),
    "a parameter of no tensor": snapshot(
        module(mapping(w=call(name("torch._utils", "_rebuild_parameter"), NONE, b"\x89", ORDERED)))
    ),
}

NUMPY = {
    "an object dtype": pickled(call(DTYPE, text("O8"), b"\x89", b"\x88")),
    "a structured dtype": pickled(call(DTYPE, EMPTY_LIST, b"\x89", b"\x88")),
    "a void dtype": pickled(call(DTYPE, text("V1000000000"), b"\x89", b"\x88")),
    "a big-endian dtype": pickled(
        F8 + tuple_of(integer(3), text(">"), NONE, NONE, NONE, integer(-1), integer(-1), integer(0)) + BUILD
    ),
    "a dtype with fields": pickled(
        F8
        + tuple_of(integer(3), text("<"), NONE, text("f"), EMPTY_DICT, integer(8), integer(1), integer(0))
        + BUILD
    ),
    "a dtype built twice": pickled(F8 + ORDER + BUILD + ORDER + BUILD),
    "a scalar of too many bytes": pickled(call(SCALAR, F8, blob(bytes(9)))),
    "a scalar of an object": pickled(call(SCALAR, F8, NONE)),
    "a scalar without a dtype": pickled(call(SCALAR, text("f8"), blob(bytes(8)))),
    "an array of another class": pickled(
        call(name("numpy.core.multiarray", "_reconstruct"), GETATTR, EMPTY_TUPLE, blob(b"b"))
    ),
    "an array with a list of objects": pickled(
        NDARRAY + tuple_of(integer(1), tuple_of(integer(1)), F8, b"\x89", EMPTY_LIST) + BUILD
    ),
    "an array larger than its bytes": pickled(
        NDARRAY + tuple_of(integer(1), tuple_of(integer(1 << 40)), F8, b"\x89", blob(bytes(8))) + BUILD
    ),
    "an array of negative size": pickled(
        NDARRAY
        + tuple_of(integer(1), tuple_of(integer(-1), integer(-1)), F8, b"\x89", blob(bytes(8)))
        + BUILD
    ),
}

POP = b"0"
LAUGHS = 100
LAUGH = EMPTY_LIST + MEMOIZE + b"".join((b"h" + bytes([i])) * 2 + b"\x86" + MEMOIZE for i in range(LAUGHS))
"""A list of lists of … lists: memo 100 has 2¹⁰⁰ leaves."""
SHARED = storage() + MEMOIZE + POP
"""Memo 0: a storage for several tensors."""
CYCLE = EMPTY_DICT + MEMOIZE + POP
"""Memo 0: a dictionary that will hold itself."""
WEIGHT = mapping(w=tensor(storage()))


def nest(depth: int) -> bytes:
    """A module in a module in …"""
    nested_module = module(WEIGHT)
    for _ in range(depth):
        nested_module = module(children=mapping(a=nested_module))
    return nested_module


STRUCTURE = {
    "nothing": pickled(NONE),
    "a list": pickled(EMPTY_LIST),
    "an empty dictionary": pickled(EMPTY_DICT),
    "a number as a key": pickled(EMPTY_DICT + integer(1) + NONE + b"s"),
    "no weights": snapshot(module()),
    "a network that is a dictionary": snapshot(EMPTY_DICT),
    "a network that is a bound method": snapshot(call(GETATTR, module(), text("a"))),
    "a record without a state": snapshot(call(PERSISTENT, EMPTY_DICT)),
    "a record that is text": snapshot(call(PERSISTENT, text("x"))),
    "a record that holds itself": pickled(
        CYCLE + mapping(ema=call(PERSISTENT, b"h\0" + text("state") + b"h\0s"))
    ),
    "a state that holds itself": pickled(
        CYCLE
        + mapping(
            ema=module(WEIGHT, mapping(a=call(PERSISTENT, record(b"h\0"))), into=b"h\0"),
        )
    ),
    "a parameter that is text": snapshot(module(mapping(w=text("x")))),
    "a parameter that is nothing": snapshot(module(mapping(w=NONE))),
    "a child that is text": snapshot(module(children=mapping(a=text("x")))),
    "a child without a state": snapshot(module(children=mapping(a=MODULE_DICT))),
    "a child used twice": snapshot(
        module(WEIGHT, mapping(a=module(mapping(v=tensor(storage()))) + b"r\x63\0\0\0", b=b"j\x63\0\0\0"))
    ),
    "one storage for two tensors": pickled(SHARED + mapping(a=tensor(b"h\x00"), b=tensor(b"h\x00"))),
    "children a hundred deep": snapshot(nest(100)),
    "billions of laughs in the arguments": pickled(
        LAUGH + POP * (LAUGHS + 1) + mapping(ema=module(WEIGHT, kwargs=mapping(x=b"h" + bytes([LAUGHS]))))
    ),
    "unnamed arguments": snapshot(module(mapping(w=tensor(storage())))).replace(
        text("_init_args") + EMPTY_TUPLE, text("_init_args") + tuple_of(NONE)
    ),
}

HOSTILE = {
    f"{group}: {label}": data
    for group, files in {
        "call": CALLS,
        "opcode": FORBIDDEN,
        "length": LENGTHS,
        "misuse": MISUSE,
        "tensor": TENSORS,
        "numpy": NUMPY,
        "structure": STRUCTURE,
    }.items()
    for label, data in files.items()
}
