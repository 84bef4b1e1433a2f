"""What a result was made on."""

import json

import torch

from consistune.system.host import machine


def test_a_machine_is_told_as_it_is_now() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        found = machine()
    finally:
        torch.set_num_threads(threads)
    assert found["threads"] == threads + 1
    assert found["processor"]
    assert len(found["devices"]) == torch.cuda.device_count()
    assert json.loads(json.dumps(found)) == found
