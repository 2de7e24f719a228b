"""Kept descriptors: closed with their objects, whenever the garbage collector finds these."""

import gc
import os
import threading

from mergekern._internal.descriptors import KeptDescriptor


def test_collection_while_a_file_is_opened_waits_for_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    before = len(os.listdir("/proc/self/fd"))

    def open_many():
        for _ in range(50):
            kept = KeptDescriptor(path)
            with kept.opened() as descriptor:
                assert os.pread(descriptor, 7, 0) == b"content"
            cycle = [kept]
            cycle.append(cycle)  # so that only the collector frees it, at some later allocation

    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        thread = threading.Thread(target=open_many, daemon=True)
        thread.start()
        thread.join(30)
    finally:
        gc.set_threshold(*thresholds)
    assert not thread.is_alive()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
