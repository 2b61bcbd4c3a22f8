"""The audit of an artifact as plain JSON values: totals, members, layers with reasons, peers. docs/AUDIT.md explains each key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .. import _native
from ..artifact import Artifact
from ..backends.cpu import CpuBackend
from ..bench.conditions import Watch
from ..bench.networks import original_of
from ..bench.peers import Peer
from ..bench.sample import Sample
from ..bench.subject import Subject
from ..bench.work import ENSEMBLE
from ..errors import UnsupportedError
from ..ledger import Cost, ledger
from ..machine import cache_bytes, processor
from ..peaks import Peaks, measure_peaks
from ..threads import available_threads
from .bound import bandwidth, layer_bound, member_bound
from .factors import efficiency
from .layers import Layer, MemberProfile, member_profile
from .peers import PeerRuns, Say
from .reasons import Machine, reasons
from .running import Call, Setting, Times, dispatch_seconds, engine_call, measure
from .totals import charged, lost_shares, realised_share, same_layers

# Keys of the ledger that are shown beside each other, and their names here.
_CONVENTIONS = {"flops_paper": "flops_ratio", "macs": "macs_ratio", "bb23": "bb23_ratio", "bytes": "bytes_ratio"}


def require_original(artifact: Artifact) -> str:
    """The name of the float original that everything is held against; raises UnsupportedError without one."""
    original = original_of(artifact.graph)
    if original is None or len(artifact.graph.members) < 2:
        raise UnsupportedError("audit", expected="an artifact with compressed members and their float original",
                               got="members " + ", ".join(m.name for m in artifact.graph.members),
                               fix="build it with its original as reference (hce build does, unless told --no-reference)")
    return original


def profiles(artifact: Artifact, images: Any, setting: Setting) -> dict[str, MemberProfile]:
    """Every member on one thread, step by step, medians of ``setting.repeats`` runs."""
    found = {}
    for member in artifact.graph.members:
        graph = artifact.graph.only(member.name)
        backend = CpuBackend(graph, isa=setting.isa, algorithm=setting.algorithm)
        found[member.name] = member_profile(graph, backend.profile(images, setting.repeats)[member.name], len(images))
    return found


def audit(artifact: Artifact, sample: Sample, peers: Sequence[Peer], setting: Setting, say: Say = lambda text: None) -> dict[str, Any]:
    """What ``hce audit --json`` writes, but for the model's name and the sweep."""
    original = require_original(artifact)
    isa = _native.choose_isa(setting.isa)
    if setting.threads > available_threads():
        raise UnsupportedError("audit --threads", expected=f"at most {available_threads()}, the processors of this process",
                               got=str(setting.threads), fix="ask for fewer, or widen its affinity or control group")
    say("measuring the peaks of this machine")
    counts = sorted({1, setting.threads})
    before = [measure_peaks(isa, count) for count in counts]
    subject = Subject(artifact, sample, isa)
    images = subject.batch(setting.batch)
    runs = PeerRuns(subject, original, peers, setting, say)
    say("profiling layers")
    profiled = profiles(artifact, images, setting)

    names = [m.name for m in artifact.graph.members]
    voters = [m.name for m in artifact.graph.voters]
    groups = {name: [name] for name in names} | ({ENSEMBLE: voters} if len(voters) > 1 else {})
    calls: dict[str, Call] = {name: engine_call(artifact.graph.only(*members), images, setting) for name, members in groups.items()}
    calls |= {call.name: call.call for call in runs.calls}
    baseline_of = dict.fromkeys(groups, original) | {call.name: call.baseline for call in runs.calls}
    say(f"timing {len(calls)} calls in {setting.rounds} rounds")
    watch = Watch()
    times, restless = measure(calls, baseline_of, setting)
    conditions = {"restless_turns": restless, **watch.read(setting.threads)}
    # Before and after, because a disturbed peak would make every layer look better than it is.
    all_peaks = [peaks.or_better(measure_peaks(isa, count)) for peaks, count in zip(before, counts, strict=True)]
    peaks = all_peaks[0]
    machine = Machine(peaks, dispatch_seconds(isa))

    book = ledger(artifact.graph)
    costs = {**book["members"], ENSEMBLE: book["ensemble"]}
    members = {
        name: _member(name, parts, costs, original, times, profiled, machine, setting) for name, parts in groups.items() if name != original
    }
    total = members[ENSEMBLE] if ENSEMBLE in members else members[next(name for name in voters if name != original)]
    return {
        "machine": {"processor": processor(), "isa": isa, "caches": {str(k): v for k, v in cache_bytes().items()}, "conditions": conditions},
        "setting": {**asdict(setting), "isa": isa, "sample": sample.source}, "convention": book["convention"],
        "peaks": [p.as_dict() for p in all_peaks], "dispatch_seconds": machine.dispatch_seconds,
        "original": {"member": original, "seconds": times[original].seconds / setting.batch,
                     "images_per_second": setting.batch / times[original].seconds, **_against_bound(profiled[original], peaks)},
        "total": total, "members": members,
        "layers": [row for name in names if name != original for row in _layers(profiled[original], profiled[name], machine)],
        "rest": {name: _rest(profile) for name, profile in profiled.items()},
        "peers": _peers(runs, times, costs, original, setting),
    }


def _against_bound(profile: MemberProfile, peaks: Peaks) -> dict[str, float]:
    """How fast a profiled member is, as a share of what the peaks allow."""
    bound = member_bound(profile, peaks)
    return {"profile_seconds": profile.seconds, "bound_seconds": bound, "bound_reached": bound / profile.seconds}


def _member(
    name: str, parts: Sequence[str], costs: dict[str, Any], original: str, times: dict[str, Times], profiled: dict[str, MemberProfile],
    machine: Machine, setting: Setting,
) -> dict[str, Any]:
    """One member, or the ensemble of ``parts``."""
    baseline, ratio = profiled[original], times[name].ratio
    conventions = {key: costs[name][field] / costs[original][field] for field, key in _CONVENTIONS.items()}
    flops = conventions["flops_ratio"]
    bound = sum(member_bound(profiled[part], machine.peaks) for part in parts) / member_bound(baseline, machine.peaks)
    profiles_of = [profiled[part] for part in parts]
    seconds = sum(p.seconds for p in profiles_of)
    lost = None
    if all(same_layers(baseline, p) for p in profiles_of):
        sums: dict[str, float] = {}
        for profile in profiles_of:
            for code, value in charged(baseline, profile, machine).items():
                sums[code] = sums.get(code, 0.0) + value
        lost = lost_shares(sums, baseline.seconds, flops)
    return {
        **conventions, "time_ratio": ratio, "interval": times[name].interval, "realised_share": realised_share(ratio, flops),
        "bound_ratio": bound, "bound_share": realised_share(ratio, bound), "seconds": times[name].seconds / setting.batch,
        "images_per_second": setting.batch / times[name].seconds, "profile_seconds": seconds,
        "profile_time_ratio": seconds / baseline.seconds, "profile_realised_share": realised_share(seconds / baseline.seconds, flops),
        "bound_reached": sum(member_bound(p, machine.peaks) for p in profiles_of) / seconds, "lost": lost,
    }


def _layers(original: MemberProfile, member: MemberProfile, machine: Machine) -> list[dict[str, Any]]:
    """A row per layer; none if the member has other layers than the original."""
    if not same_layers(original, member):
        return []
    return [_layer(original.layers[name], layer, member.member, machine) for name, layer in member.layers.items()]


def _layer(before: Layer, layer: Layer, member: str, machine: Machine) -> dict[str, Any]:
    peaks = machine.peaks
    flops, time = layer.cost.flops_paper / before.cost.flops_paper, layer.seconds / before.seconds
    rate = layer.bytes / layer.product_seconds
    ratios = {key: _cost(layer.cost, field) / _cost(before.cost, field) for field, key in _CONVENTIONS.items()}
    return {
        "layer": layer.name, "member": member, **ratios, "time_ratio": time, "realised_share": realised_share(time, flops),
        "bound_ratio": layer_bound(layer, peaks) / layer_bound(before, peaks),
        "seconds": layer.seconds, "original_seconds": before.seconds, "kernel": layer.kernel, "original_kernel": before.kernel,
        "peak_share": layer.macs / layer.product_seconds / peaks.macs[layer.kind], "executed_share": efficiency(layer, peaks),
        "bytes_per_second": rate, "place": peaks.place_of(layer.working_set), "bandwidth_share": rate / bandwidth(peaks, layer.working_set),
        "overhead_seconds": layer.overhead_seconds, "reasons": [reason.as_dict() for reason in reasons(before, layer, machine)],
    }


def _cost(cost: Cost, field: str) -> float:
    return float(getattr(cost, field))


def _rest(profile: MemberProfile) -> list[dict[str, Any]]:
    return [{"nodes": list(s.step.nodes), "kernel": s.step.kernel, "seconds": s.seconds} for s in profile.rest]


def _peers(runs: PeerRuns, times: dict[str, Times], costs: dict[str, Any], original: str, setting: Setting) -> dict[str, Any]:
    """Totals of every session, and layers of those peers that can profile; layers that a peer fused away are missing."""
    rows = []
    for call in runs.calls:
        found = times[call.name]
        ratio = 1.0 if call.name == call.baseline else costs[call.member]["flops_paper"] / costs[original]["flops_paper"]
        rows.append({
            "engine": call.engine, "member": call.member, "flops_ratio": ratio, "time_ratio": found.ratio, "interval": found.interval,
            "realised_share": realised_share(found.ratio, ratio), "seconds": found.seconds / setting.batch,
            "images_per_second": setting.batch / found.seconds,
        })
    layers = []
    for peer in runs.chosen:
        runs.say(f"profiling {peer.name}")
        sister = runs.layers(runs.peer(peer.float_peer)).get(original, {}) if peer.precision == "int8" else None
        of_members = runs.layers(peer)
        base = of_members.get(original, {}) if sister is None else sister
        for member, seconds in of_members.items():
            if member == original and sister is None:
                continue
            layers += [{"engine": peer.name, "member": member, "layer": name, "seconds": t, "original_seconds": base[name],
                        "time_ratio": t / base[name]} for name, t in seconds.items() if base.get(name)]
    return {"rows": rows, "layers": layers, "skipped": runs.skipped,
            "versions": {name: found for peer in runs.chosen for name, found in peer.versions().items()}}
