"""Small files that ask for much: each is refused before it costs time or memory."""

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consistune.errors import UserError
from consistune.interop.checkpoints import load_checkpoint
from consistune.interop.files import MAX_TENSORS
from consistune.interop.reading import read_checkpoint
from consistune.interop.recognise import configuration
from consistune.interop.records import Storage, TensorRecord
from consistune.interop.wrappers import flat, groups
from consistune.nn import store
from tests.support.assembler import (
    BUILD,
    EMPTY_DICT,
    EMPTY_TUPLE,
    MARK,
    MEMOIZE,
    NEWOBJ,
    NONE,
    PROTO,
    module,
    name,
    snapshot,
    text,
)
from tests.support.memory import at_most

MANY = [f"t{i}" for i in range(MAX_TENSORS - 10)]


def safetensors(
    names: list[str], config: object = None, shapes: dict[str, list[int]] | None = None, dtype: str = "F32"
) -> bytes:
    """Zeros, none but where `shapes` asks for some; `config` as our exports have it."""
    header: dict[str, Any] = {}
    end = 0
    for key in names:
        shape = (shapes or {}).get(key, [0])
        start, end = end, end + 4 * product(shape)
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    if config is not None:
        header["__metadata__"] = {"sct": json.dumps(config)}
    line = json.dumps(header).encode()
    return struct.pack("<Q", len(line)) + line + bytes(end)


def product(numbers: list[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def configured(precond: dict[str, Any] | None = None, meta: object = None, **network: Any) -> bytes:
    config = {"network": network, "precond": precond or {"kind": "edm"}, "meta": meta or {}}
    return safetensors(MANY, config)


def shared_buffers(entries: int = 50_000, modules: int = 9_000) -> bytes:
    """Modules with one great dictionary of buffers, all None: the walk would be their product."""
    kept = [
        EMPTY_DICT + MARK + b"".join(text(f"b{i}") + NONE for i in range(entries)) + b"u",
        EMPTY_DICT,
        name("torch.nn.modules.container", "ModuleDict"),
        *(text(key) for key in ("_parameters", "_buffers", "_modules")),
    ]
    buffers, empty, cls, *keys = (b"h" + bytes([i]) for i in range(len(kept)))
    state = MARK + keys[0] + empty + keys[1] + buffers + keys[2] + empty + b"u"
    one = cls + EMPTY_TUPLE + NEWOBJ + EMPTY_DICT + state + BUILD
    children = EMPTY_DICT + MARK + b"".join(text(f"m{i}") + one for i in range(modules)) + b"u"
    return PROTO + b"".join(part + MEMOIZE + b"0" for part in kept) + snapshot(module(children=children))[2:]


def swelling_header(size: int) -> bytes:
    """JSON of which three bytes become a dictionary of 64."""
    line = b'{"a":[' + b"{}," * (size // 3) + b"{}]}"
    return struct.pack("<Q", len(line)) + line


def read_whole(path: Path) -> None:
    """All that happens before torch is imported."""
    configuration(read_checkpoint(path))


FILES: dict[str, Callable[[], bytes]] = {
    "buffers shared by modules": shared_buffers,
    "a header of 15 MiB": lambda: swelling_header(15 << 20),
    "the largest header": lambda: swelling_header((1 << 20) - 100),
    "too many tensors": lambda: safetensors([f"t{i}" for i in range(MAX_TENSORS + 1)]),
    "output blocks without end": lambda: safetensors(
        ["time_embed.0.weight", "input_blocks.0.0.weight", *(f"output_blocks.{i}.x" for i in range(2900))]
    ),
    "blocks without end": lambda: configured(kind="song", image_shape=[3, 32, 32], num_blocks=151),
    "blocks of the demo's network": lambda: configured(kind="mlp", image_shape=[3, 32, 32], blocks=500),
    "blocks at many levels": lambda: configured(
        kind="edm2", image_shape=[3, 32768, 32768], channel_mult=[1] * 16, num_blocks=24
    ),
    "meta that is a list": lambda: configured(meta=[["a", 1]], kind="mlp", image_shape=[1, 2, 2]),
    "a kernel without dimensions": lambda: safetensors(
        ["model.enc.8x8_conv.weight", "model.enc.8x8_block0.conv1.weight"],
        shapes={"model.enc.8x8_conv.weight": [4, 3, 3, 3], "model.enc.8x8_block0.conv1.weight": []},
    ),
    "a resolution of 300 digits": lambda: safetensors(
        [
            f"model.enc.{'9' * 150}x{'9' * 150}_conv.weight",
            f"model.enc.{'9' * 150}x{'9' * 150}_block0.conv1.weight",
        ],
        shapes={f"model.enc.{'9' * 150}x{'9' * 150}_conv.weight": [4, 3, 3, 3]}
        | {f"model.enc.{'9' * 150}x{'9' * 150}_block0.conv1.weight": [4, 4, 3, 3]},
    ),
    "torch's form before archives": lambda: b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(100),
}


@pytest.mark.parametrize("label", FILES)
def test_it_is_refused_at_once_and_in_little_memory(label: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILES[label]())

    def refused() -> tuple[float, UserError]:
        began = time.process_time()
        with pytest.raises(UserError) as caught:
            read_whole(path)
        return time.process_time() - began, caught.value

    seconds, error = min((refused() for _ in range(3)), key=lambda found: found[0])  # other work slows a core
    assert seconds < 1
    assert len(str(error)) < 500
    assert str(error).isprintable()
    with at_most(100), pytest.raises(UserError):
        read_whole(path)


@pytest.mark.parametrize(
    "network",
    [
        {"kind": "song", "image_shape": [3, 32, 32], "channel_mult": [1], "num_blocks": 149},
        {"kind": "adm", "image_shape": [3, 32, 32], "channel_mult": [1], "num_blocks": 149},
        {"kind": "edm2", "image_shape": [3, 32768, 32768], "channel_mult": [1] * 16, "num_blocks": 23},
        {"kind": "mlp", "image_shape": [3, 32, 32], "blocks": 498, "width": 100_000},
    ],
    ids=lambda network: str(network["kind"]),
)
def test_the_largest_network_that_a_file_may_name_is_compared_without_being_built(
    network: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(configured(**network))
    began = time.process_time()
    with pytest.raises(UserError, match="the checkpoint lacks"):
        load_checkpoint(path)
    assert time.process_time() - began < 10


def test_a_folder_whose_configuration_exceeds_its_weights_is_not_built(tmp_path: Path) -> None:
    config = {"network": {"kind": "mlp", "image_shape": [1, 2, 2], "width": 10}, "precond": {"kind": "edm"}}
    folder = store.save(store.build(config), tmp_path / "model")
    config["network"]["width"] = 10_000_000  # 1.6 PB of weights
    (folder / store.CONFIG).write_text(json.dumps({"format": 1, **config}))
    with pytest.raises(UserError, match="do not fit"):
        store.load(folder)


def test_a_dictionary_that_stands_in_itself_many_times_and_many_networks_are_looked_at_in_part() -> None:
    record = TensorRecord(Storage("float32", 0, memoryview(b"")), 0, (0,), (1,))
    nested: dict[str, Any] = {}
    for _ in range(3):
        nested = {str(number): nested for number in range(3000)}  # 27 billion ways to the innermost
    began = time.process_time()
    assert flat(nested) == {}
    assert flat({"x" * 500: record, "net": {"w": record}}) == {"net.w": record}
    many = {f"net{number}.enc.8x8_conv.weight": record for number in range(20_000)}
    assert len(groups(many)) == 100
    assert time.process_time() - began < 25
