"""Order, transfers, modes and errors of the CUDA back end, on a device that checks the order (fake_runtime.py)."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from hce_engine.backends.cuda import modes
from hce_engine.backends.cuda.modes import CONTEXTS, GRIDS, SEQUENTIAL, SHARES, STREAMS, Way
from hce_engine.errors import InputError, UnsupportedError
from tests.cuda.fake_programs import CLASSES, FakeBackend, FakeProgram, Seconds, expected, pixels
from tests.cuda.fake_runtime import FakeRuntime, Race

LONG = 27  # images: 7 chunks of at most 4


def same(got: dict[str, np.ndarray], images: np.ndarray) -> None:
    want = expected(images)
    assert {name: z.tobytes() for name, z in got.items()} == {name: want[name].tobytes() for name in got}


def warm(runtime: FakeRuntime, mode: str = STREAMS) -> FakeBackend:
    """A back end that ran once, so that what is counted from now on are runs."""
    backend = FakeBackend(runtime, mode)
    same(backend.run(pixels(LONG)), pixels(LONG))
    runtime.waits = runtime.operations = 0
    runtime.history.clear()
    return backend


# -- the checker ------------------------------------------------------------------------------------------------------


def test_the_checker_finds_what_nothing_orders() -> None:
    runtime = FakeRuntime()
    a, b, out = torch.zeros(4), torch.zeros(4), np.zeros(2, np.float32)
    one, two = runtime.stream(), runtime.stream()
    with runtime.use(one):
        runtime.copy(a, b)
    event = runtime.event()
    two.wait_event(event)  # not recorded: it holds nobody up
    with runtime.use(two):
        with pytest.raises(Race, match="copy on stream 2 reads what copy on stream 1 writes"):
            runtime.copy(torch.zeros(2), a[1:3])
        with pytest.raises(Race, match="copy on stream 2 overwrites what copy on stream 1 uses"):
            runtime.copy(b[3:], torch.zeros(1))
    with pytest.raises(Race, match="the host's read reads"):
        runtime.read_host(a[:2], out)
    event.record(one)
    two.wait_event(event)
    with runtime.use(two):
        runtime.copy(torch.zeros(4), a)
    event.synchronize()
    runtime.read_host(a[:2], out)


def test_the_checker_wants_every_stream_of_a_capture_joined() -> None:
    runtime = FakeRuntime()
    side, fork = runtime.stream(), runtime.event()

    def forget() -> None:
        fork.record(runtime.current())
        side.wait_event(fork)
        with runtime.use(side):
            runtime.copy(torch.zeros(1), torch.zeros(1))

    with pytest.raises(AssertionError, match="not joined"):
        runtime.capture(forget)
    def stray() -> None:
        with runtime.use(side):
            runtime.copy(torch.zeros(1), torch.zeros(1))

    with pytest.raises(AssertionError, match="does not know"):
        runtime.capture(stray)


# -- arrays of the host -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", modes.MODES)
@pytest.mark.parametrize("count", [0, 1, 4, 5, 8, 11, 12, LONG])
def test_arrays_of_any_number_of_chunks(count: int, mode: str) -> None:
    backend = FakeBackend(FakeRuntime(), mode)
    images = pixels(count)
    for _ in range(2):
        same(backend.run(images), images)
    same(backend.run(images, ensemble_only=True), images)
    same(backend.run(pixels(3)), pixels(3))
    same(backend.run(pixels(LONG)), pixels(LONG))


def test_transfers_may_run_beside_the_computation() -> None:
    """What a GPU is free to do at the same time: nothing orders an upload behind the chunk before it, nor a chunk behind a
    download."""
    runtime = FakeRuntime()
    backend = warm(runtime)
    backend.run(pixels(LONG))
    uploads = [d for d in runtime.history if str(d.stream) == str(backend._transfers._upload)]
    downloads = [d for d in runtime.history if str(d.stream) == str(backend._transfers._download)]
    means = [d for d in runtime.history if d.name == "mean"]
    assert len(uploads) == len(means) == 7
    assert len(downloads) == 7 * 4  # three members and the ensemble
    for i in range(1, 7):
        assert not uploads[i].past & means[i - 1].bit
        assert not means[i].past & downloads[4 * i - 1].bit
        assert means[i].past & uploads[i].bit and downloads[4 * i].past & means[i].bit
    for i in range(2, 7):
        assert uploads[i].past & downloads[4 * i - 5].bit  # two stagings in turns


def test_parts_may_run_at_the_same_time() -> None:
    for mode, together in ((STREAMS, True), (SEQUENTIAL, False)):
        runtime = FakeRuntime()
        backend = warm(runtime, mode)
        backend.run(pixels(4))
        by_name = {d.name: d for d in runtime.history}
        assert bool(by_name["s.load"].past & by_name["q.store"].bit) != together
        assert bool(by_name["q.load"].past & by_name["s.store"].bit) is False
        assert all(by_name["mean"].past & by_name[f"{name}.store"].bit for name in "qsr")


@pytest.mark.parametrize("count", [3, 11])
def test_every_wait_is_needed(count: int) -> None:
    runtime = FakeRuntime()
    warm(runtime).run(pixels(count))
    chunks, waits = -(-count // 4), runtime.waits
    # A fork and a join for each of two parts per chunk; between more than one, an upload and a download.
    assert waits == chunks * 4 + (chunks > 1) * chunks * 2
    for wait in range(waits):
        runtime = FakeRuntime()
        backend = warm(runtime)
        runtime.drop = wait
        with pytest.raises(UnsupportedError, match="Race"):
            backend.run(pixels(count))


def test_the_host_waits_before_it_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime()
    backend = warm(runtime)
    for stage in backend._transfers._stages:
        monkeypatch.setattr(stage.downloaded, "synchronize", lambda: None)
    with pytest.raises(UnsupportedError, match="Race: the host's read reads"):
        backend.run(pixels(5))


# -- tensors and threads ----------------------------------------------------------------------------------------------


def run_on(backend: FakeBackend, stream: object, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with backend.runtime.use(stream):  # type: ignore[arg-type]
        return backend.run(images)


def test_tensors_stay_on_the_stream_of_their_caller() -> None:
    runtime = FakeRuntime()
    backend = warm(runtime)
    one, two, images = runtime.stream(), runtime.stream(), torch.from_numpy(pixels(9))
    first, second = run_on(backend, one, images), run_on(backend, two, images)
    with runtime.use(one):
        runtime.copy(torch.zeros(9, CLASSES), first["s"])
        with pytest.raises(Race):
            runtime.copy(torch.zeros(9, CLASSES), second["s"])
    same({name: z.numpy() for name, z in first.items()}, images.numpy())
    assert not any(d.name == "copy" and d.stream in backend._transfers.streams().values() for d in runtime.history)


def test_a_turn_waits_for_the_last_one() -> None:
    runtime = FakeRuntime()
    backend = warm(runtime)
    images = torch.from_numpy(pixels(4))
    run_on(backend, runtime.stream(), images)
    runtime.drop = runtime.waits  # the next one: that of the turn
    with pytest.raises(UnsupportedError, match=r"Race: copy on .* overwrites what"):
        run_on(backend, runtime.stream(), images)


def test_a_stream_under_capture_is_refused_before_anything_is_queued(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    backend = warm(runtime)
    calls = (lambda: backend.run(pixels(2)), lambda: backend.run(torch.from_numpy(pixels(2))), lambda: backend.warm_up([1]),
             lambda: backend.trace(pixels(2), tmp_path / "trace.json"))
    before = runtime.operations
    for call in calls:
        with pytest.raises(UnsupportedError, match="one that is captured"):
            runtime.graph(call, runtime.stream())
    assert runtime.operations == before
    same(backend.run(pixels(2)), pixels(2))  # and the engine lives


@pytest.mark.parametrize("lost", [False, True])
def test_memory_is_freed_after_the_last_run_is_over(lost: bool) -> None:
    runtime = FakeRuntime()
    backend = warm(runtime)
    run_on(backend, runtime.stream(), torch.from_numpy(pixels(3)))
    last = runtime.history[-1].bit
    assert not last & runtime.host.past
    runtime.fail = runtime.operations if lost else None
    del backend
    gc.collect()
    assert bool(last & runtime.host.past) is not lost


def test_threads_take_turns() -> None:
    runtime = FakeRuntime()
    backend = FakeBackend(runtime)
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            with runtime.use(runtime.stream()):
                for count in (thread + 1, 9, 4):
                    same(backend.run(pixels(count)), pixels(count))
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# -- errors -----------------------------------------------------------------------------------------------------------


def refuses(backend: FakeBackend, tmp_path: Path) -> None:
    """Every call of a lost engine says so and asks the device for nothing."""
    runtime = backend.runtime
    assert isinstance(runtime, FakeRuntime)
    before = runtime.operations
    for call in (lambda: backend.run(pixels(1)), lambda: backend.run(torch.from_numpy(pixels(2))), lambda: backend.warm_up([1]),
                 lambda: backend.trace(pixels(1), tmp_path / "trace.json")):
        with pytest.raises(UnsupportedError, match=r"has not failed, got one that did: .*illegal memory.*make a new engine"):
            call()
    assert runtime.operations == before
    assert not (tmp_path / "trace.json").exists()


def test_an_error_anywhere_ends_the_engine(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    backend = FakeBackend(runtime)
    backend.run(pixels(11))
    total = runtime.operations
    assert total > 100
    for fail in range(1, total + 1):
        runtime = FakeRuntime(fail=fail)
        backend = FakeBackend(runtime)
        with pytest.raises(UnsupportedError, match=r"without errors, got RuntimeError: .*illegal memory.*not used again"):
            backend.run(pixels(11))
        refuses(backend, tmp_path)


def test_an_error_while_modes_are_compared_ends_the_engine(tmp_path: Path) -> None:
    """Also where a single share may be refused: the device is asked whether it lives."""
    runtime = FakeRuntime()
    backend = FakeBackend(runtime, "auto")
    backend.warm_up([4])
    for fail in range(1, runtime.operations, 19):
        backend = FakeBackend(FakeRuntime(fail=fail), "auto")
        with pytest.raises(UnsupportedError, match="run without errors"):
            backend.warm_up([4])
        refuses(backend, tmp_path)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_no_error_of_cuda_ends_a_call_alone(kind: type[BaseException]) -> None:
    runtime = FakeRuntime()
    backend = warm(runtime)
    backend.run(pixels(11))
    total = runtime.operations
    for fail in range(1, total + 1):
        runtime = FakeRuntime()
        backend = warm(runtime)
        runtime.fail, runtime.lost, runtime.error = fail, False, kind
        with pytest.raises(UnsupportedError if kind is MemoryError else kind):
            backend.run(pixels(11))
        # The first and the last operation are those of the turn; between them staging may be in use, and is left alone.
        assert bool(backend._transfers._stages) == (fail in (1, total))
        same(backend.run(pixels(11)), pixels(11))
        same(backend.run(pixels(2)), pixels(2))


def test_out_of_memory_names_what_is_needed_and_what_is_free() -> None:
    backend = FakeBackend(FakeRuntime(memory=1000))
    with pytest.raises(UnsupportedError, match="expected 12345 bytes of free GPU memory for 4 images, got 1000 bytes; use"):
        backend.run(pixels(4))

    def full(program: FakeProgram) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    backend = FakeBackend(FakeRuntime(), built=full)
    with pytest.raises(UnsupportedError, match=r"12345 bytes .* for 2 images, got \d+ bytes, and OutOfMemoryError.*2.00 GiB"):
        backend.run(pixels(2))
    backend.built = lambda program: None
    same(backend.run(pixels(2)), pixels(2))
    runtime = FakeRuntime()
    backend = warm(runtime)
    backend._transfers._stages, runtime.memory = [], 100
    with pytest.raises(UnsupportedError, match=r"expected \d{3} bytes of free GPU memory for 4 images, got 100 bytes"):
        backend.run(pixels(8))


# -- modes ------------------------------------------------------------------------------------------------------------


def timed(seconds: dict[str, Seconds], mode: str = "auto", runtime: FakeRuntime | None = None,
          built: Callable[[FakeProgram], None] = lambda program: None) -> tuple[FakeBackend, modes.Timing]:
    backend = FakeBackend(runtime or FakeRuntime(), mode, seconds, built)
    backend.warm_up([4])
    timing = backend.timing(4)
    assert timing is not None
    same(backend.run(pixels(4)), pixels(4))
    return backend, timing


def takes(seconds: float) -> Seconds:
    return lambda share: seconds


def test_plain_streams_where_they_are_the_fastest() -> None:
    """With shares, parts take longer here: nothing hinders them on this device."""
    _, timing = timed({"q": takes(4.0), "s": lambda share: 2.0 if share is None else 9.0, "r": takes(1.0)})
    assert timing.chosen == Way(STREAMS)
    assert timing.sequential == pytest.approx(7.0) and timing.concurrent == pytest.approx(4.0)
    assert [part.seconds for part in timing.parts] == pytest.approx([4.0, 2.0, 1.0])
    assert [part.members for part in timing.parts] == [("q",), ("s",), ("r",)]
    assert timing.overlap == pytest.approx(3.0)  # more than the shortest part: there are three
    ways = [c.way for c in timing.candidates]
    # s and r take 3 of 7 of the time: no fraction is near it.
    assert ways == [Way(SEQUENTIAL), Way(STREAMS), *(Way(SHARES, GRIDS, f) for f in (0.75, 0.5, 0.375, 0.25, 0.429)),
                    *(Way(SHARES, CONTEXTS, f) for f in (0.75, 0.5, 0.375, 0.25))]
    assert all(c.seconds is not None and not c.refused for c in timing.candidates)
    assert timing.why == "the fastest of 11 by the median of 9 replays"


@pytest.mark.parametrize(("fast", "mode", "kind"), [("stream 1", SEQUENTIAL, ""), ("side", SHARES, CONTEXTS)])
def test_what_is_fast_where_others_hinder_each_other(fast: str, mode: str, kind: str) -> None:
    """Work takes longer on all streams but some: on the one that captures begin on, or on those of green contexts."""
    runtime = FakeRuntime()
    _, timing = timed(dict.fromkeys("qsr", lambda share: 1.0 if str(runtime.current()).startswith(fast) else 9.0), runtime=runtime)
    assert (timing.chosen.mode, timing.chosen.kind) == (mode, kind)
    assert timing.sequential is not None and timing.overlap is not None
    assert timing.sequential == pytest.approx(3.0 if mode == SEQUENTIAL else 27.0)
    assert timing.overlap == pytest.approx(-6.0 if mode == SEQUENTIAL else 26.0 / 9.0)


def test_the_share_that_fits_is_kept() -> None:
    asked: list[float | None] = []

    def of_s(share: float | None) -> float:
        asked.append(share)
        return 5.0 if share is None else 3.0 + abs(share - 0.25)  # half of the half: r has the other

    backend, timing = timed({"q": takes(3.0), "s": of_s, "r": lambda share: 5.0 if share is None else 3.0})
    assert timing.chosen == Way(SHARES, GRIDS, 0.5)
    assert {0.375, 0.25, 0.1875, 0.125} < set(asked)
    assert backend.report()[0]["mode"] == SHARES
    facts = json.loads(json.dumps(backend.report()))[0]["timing"]
    assert facts["mode"] == SHARES
    assert facts["chosen"] == {"mode": "shares", "kind": "grids", "share": 0.5}
    assert facts["overlap"] == pytest.approx((13.0 - 3.0) / 3.0)
    assert len(facts["candidates"]) == len(timing.candidates)


def test_parts_of_one_kind_share_the_gpu_between_them() -> None:
    parts = [type("Part", (), {"limited": True})() for _ in range(3)]
    assert modes.first_side(parts) == [True, False, False]
    assert modes.grid_shares(parts, [True, False, False], 0.5) == (0.5, 0.25, 0.25)
    parts[0].limited = False
    assert modes.first_side(parts) == [False, True, True]
    assert modes.grid_shares(parts, [False, True, True], 0.5) == (None, 0.25, 0.25)


def test_a_share_near_a_fraction_is_not_tried_twice() -> None:
    parts = [type("Part", (), {"limited": i > 0})() for i in range(2)]
    assert [w.share for w in modes.share_ways(parts, [5.0, 5.1]) if w.kind == GRIDS] == list(modes.FRACTIONS)
    assert [w.share for w in modes.share_ways(parts, [9.0, 1.0]) if w.kind == GRIDS][-1] == 0.1
    assert [w.share for w in modes.share_ways(parts, [1.0, 99.0]) if w.kind == GRIDS][-1] == 1 - modes.NEAR


def test_what_a_driver_refuses_is_left_out_with_the_reason() -> None:
    _, timing = timed({"q": takes(3.0), "s": takes(2.0), "r": takes(1.0)}, runtime=FakeRuntime(contexts=False))
    left_out = [c for c in timing.candidates if c.seconds is None]
    assert [c.way.kind for c in left_out] == [CONTEXTS] * 4
    assert all("one of 2019" in c.refused for c in left_out)
    assert timing.why.endswith(", 4 left out")


def test_a_way_with_other_bytes_is_never_run() -> None:
    def fault(program: FakeProgram) -> None:
        part = program.parts[1]
        store = part._store

        def wrong() -> None:
            store()
            # Captures are made on stream 1, from which the plain streams fork.
            if str(program.runtime.history[-1].stream) in ("stream 2", "stream 3"):
                part.logits += 1

        part._store = wrong  # type: ignore[method-assign]

    _, timing = timed({"q": takes(3.0), "s": takes(2.0), "r": takes(1.0)}, built=fault)
    left_out = [c for c in timing.candidates if c.seconds is None]
    assert {c.way.kind or c.way.mode for c in left_out} == {STREAMS, GRIDS}
    assert all("expected the bytes of mode sequential" in c.refused for c in left_out)
    assert timing.chosen.kind == CONTEXTS


def test_a_mode_that_was_asked_for_and_cannot_be_is_an_error() -> None:
    _, timing = timed(dict.fromkeys("qsr", takes(1.0)), mode="shares")
    assert timing.mode == SHARES and timing.sequential is not None
    assert STREAMS not in {c.way.mode for c in timing.candidates}
    seconds = dict.fromkeys("qsr", takes(1.0))
    backend = FakeBackend(FakeRuntime(contexts=False), "shares", seconds)

    def refuse(share: float | None) -> float:
        if share is not None:
            try:
                raise ValueError("conv2d_f32: a grid of its own expected")
            finally:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        return 1.0

    backend.seconds = {**seconds, "s": refuse}
    with pytest.raises(UnsupportedError, match=r"that this device can run, got shares: grids 0.750: CUDA error: .*, after: .*a grid of its own"):
        backend.warm_up([4])


def test_one_part_has_nothing_to_choose() -> None:
    for mode in ("auto", SHARES, STREAMS):
        backend = FakeBackend(FakeRuntime(), mode)
        for member in "qs":
            backend.warm_up([4], members=(member,))
            assert backend.timing(4, (member,)) is None
        assert [bucket["mode"] for bucket in backend.report()] == [SEQUENTIAL] * 2
    for mode in (SEQUENTIAL, STREAMS):
        backend = FakeBackend(FakeRuntime(), mode)
        backend.warm_up([4])
        assert backend.timing(4) is None
        assert backend.report() == [{"members": ["q", "s", "r"], "images": 4, "mode": mode, "timing": None}]


# -- traces -----------------------------------------------------------------------------------------------------------


def spans(path: Path) -> tuple[list[dict], dict[tuple[int, int], str]]:
    events = json.loads(path.read_text())["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    return [e for e in events if e["ph"] == "X"], names


def test_a_trace_shows_each_stream(tmp_path: Path) -> None:
    backend = warm(FakeRuntime())
    images = pixels(11)
    same(backend.trace(images, tmp_path / "trace.json"), images)
    found, threads = spans(tmp_path / "trace.json")
    assert set(threads.values()) == {"the caller's stream", "stream of s", "stream of r", "upload", "download"}
    of = {name: [e for e in found if threads[e["pid"], e["tid"]] == name] for name in threads.values()}
    assert [e["name"] for e in of["stream of s"][:3]] == ["s.load load", "s.conv conv", "s.store store"]
    assert len(of["upload"]) == 3 and len(of["download"]) == 12
    q, s = of["the caller's stream"], of["stream of s"]
    assert q[1]["name"] == "q.load load" and q[1]["dur"] == pytest.approx(1000)
    assert q[1]["ts"] == pytest.approx(s[0]["ts"])  # both at once
    assert q[1]["args"] == {"bytes_read": 1, "bytes_written": 2, "macs": 3, "launches": 1}
    document = json.loads((tmp_path / "trace.json").read_text())
    assert "slower than the CUDA graph" in document["otherData"]["note"]
    assert document["otherData"]["buckets"][0] == {"images": 4, "mode": "streams"}


def test_a_trace_of_what_runs_in_sequence_also_shows_streams(tmp_path: Path) -> None:
    backend = warm(FakeRuntime(), SEQUENTIAL)
    backend.trace(pixels(4), tmp_path / "trace.json", ensemble_only=True)
    found, threads = spans(tmp_path / "trace.json")
    assert sorted(threads) == [(1, 1), (2, 2), (2, 3)]
    assert {e["pid"] for e in found} == {1, 2}
    assert max(e["ts"] + e["dur"] for e in found if e["pid"] == 1) <= min(e["ts"] for e in found if e["pid"] == 2)
    with pytest.raises(InputError, match="at least one image"):
        backend.trace(pixels(0), tmp_path / "none.json")
