"""The servers that a run draws from: each has proven, before it gets a request, that it has the learner's weights.

Before rollouts are sampled all ranks meet in `Servers.prove`. Rank 0 asks lost servers whether they can serve again,
and sends the weights; every rank reads every server's version; all score the probe. A server that fails any of it is
lost, which every rank is told, and the others are used. None is used again before it has passed all of it. The first
requests may be sent beside the probe: `judge_probe` then says whose answers may be read.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from ds_stage2ab.config.sections import ServerSection
from ds_stage2ab.config.servers_file import Named
from ds_stage2ab.errors import ConfigError, NoServerLeft, ServerFault
from ds_stage2ab.metrics.servers import FleetChanges
from ds_stage2ab.rollout.base import weight_version
from ds_stage2ab.rollout.server import fleet as fleets
from ds_stage2ab.rollout.server.api import ServerApi, as_server_fault
from ds_stage2ab.rollout.server.fan_out import at_once
from ds_stage2ab.rollout.server.fleet import Fleet, Member
from ds_stage2ab.rollout.server.handshake import MOST_CALLS, Requirements, ServerInfo, check_servers
from ds_stage2ab.rollout.server.logprob_probe import Asked, Probe
from ds_stage2ab.rollout.server.versions import other_versions
from ds_stage2ab.rollout.server.weight_sync import Target, WeightSync
from ds_stage2ab.runtime.ranks import World

KNOCK_S = 2.0
"""Longest wait for the first word of a server that was lost: it may hang."""
HANDSHAKE_S = 60.0
"""Longest wait for its first token."""
LOOK_S = 0.5
LONGEST_WAIT_S = 10.0
"""Between two looks for a server when none is left."""

Found = dict[str, ServerInfo]


class Servers:
    """All servers of a run; every rank has one, and they agree.

    Args:
        members: the servers of the config, which have passed the handshake.
        facts: of each, what was found then.
        requirements: of a server.
        open_api: opens a server's routes.
        sync: sends the weights.
        probe: compares log-probabilities.
        world: the learner ranks.
        probe_every: transfers between two probes.
        recover_s: longest wait for a server when none is left, seconds.
        named: the servers that the run shall use from now on; None: as before. Called on rank 0.
        say: tells of the wait; called on rank 0.
    """

    def __init__(
        self,
        members: Sequence[ServerSection],
        facts: Sequence[ServerInfo],
        requirements: Requirements,
        open_api: Callable[[str], ServerApi],
        *,
        sync: WeightSync,
        probe: Probe,
        world: World,
        probe_every: int,
        recover_s: float,
        named: Named,
        say: Callable[[str], None],
    ) -> None:
        pairs = zip(members, facts, strict=True)
        self.fleet = Fleet(
            members=tuple(Member(server=one, replicas=fact.replicas, serves=True) for one, fact in pairs)
        )
        self.requirements = requirements
        self.open_api = open_api
        self.sync = sync
        self.probe = probe
        self.world = world
        self.probe_every = probe_every
        self.recover_s = recover_s
        self.named = named
        self.say = say
        self.apis: dict[str, ServerApi] = {}
        self.targets: dict[str, Target] = {}
        # rank 0's
        self.noted: dict[str, ServerFault] = {}
        # by address: servers that have failed this rank since the ranks agreed last
        self.busy: dict[str, float] = {}
        # by address: seconds with requests of this rank, since this was last reported
        self.proving_s = 0.0
        # seconds in which rollouts waited for `prove`, since then
        self.gap: float | None = None
        # of the last probe, nats per token
        self.sent = 0  # transfers
        self.probed = ""  # version of the weights that all that serve were probed with
        self.misread = ""  # what is wrong with the file of servers
        self.open_probe: Asked | None = None
        # what servers are asked beside the first requests, until `judge_probe`
        self.proven = False  # once: from then on a server may be lost
        if world.rank == 0:
            self.targets = {
                one.url: self._target(one, fact) for one, fact in zip(self.fleet.members, facts, strict=True)
            }

    def _target(self, member: Member, fact: ServerInfo) -> Target:
        """A way to send weights to a server that has none of them: nothing of an earlier way is kept."""
        return Target(
            api=self.api(member.url),
            group_port=member.server.group_port,
            world_size=fact.world_size,
            transfer=fact.transfer,
        )

    def api(self, url: str) -> ServerApi:
        if url not in self.apis:
            self.apis[url] = self.open_api(url)
        return self.apis[url]

    # --- what every rank agrees on ------------------------------------------------------------------------------

    def settle(self, *, counts: bool) -> FleetChanges:
        """What has changed since the last step; collective, behind rollouts.

        Args:
            counts: whether this is the end of a step, from which the next changes are counted.
        """
        busy = self.world.gather(self.busy)
        urls = {url for one in busy for url in one}
        longest = [max(one.get(url, 0.0) for one in busy) for url in urls]
        self._agree_on_losses()
        fleet = fleets.steadied(self.fleet)
        self.fleet = fleets.reported(fleet, counts=counts)
        proving_s, self.proving_s, self.busy = self.proving_s, 0.0, {}
        return FleetChanges(
            serving=len(fleet.serving),
            lost=fleet.lost,
            back=fleet.back,
            warnings=fleet.told,
            busy_s=sum(longest) / len(longest) if longest else 0.0,
            proving_s=proving_s,
        )

    def note_busy(self, seconds: Mapping[str, float]) -> None:
        """Add how long each server, by address, had requests of this rank."""
        for url, more in seconds.items():
            self.busy[url] = self.busy.get(url, 0.0) + more

    def _agree_on_losses(self) -> None:
        """What failed any rank is lost to all; collective."""
        seen = self.world.gather(self.noted)
        self.noted = {}
        faults: dict[str, ServerFault] = {}
        for one in seen:
            faults = {**one, **faults}  # the lowest rank's words
        serving = {member.url for member in self.fleet.serving}
        self._lose({url: fault for url, fault in faults.items() if url in serving})

    def _lose(self, faults: Mapping[str, ServerFault], *, counts: bool = True) -> None:
        """The same on every rank.

        Raises:
            ServerFault: it is the first proof of the run, which all servers that it began with must pass.
        """
        if not self.proven:
            for member in self.fleet.serving:
                if member.url in faults:
                    raise faults[member.url]
        self.fleet = self._of_rank_0(fleets.without(self.fleet, faults, time.monotonic(), counts=counts))

    def _of_rank_0(self, fleet: Fleet) -> Fleet:
        """Rank 0's: it has the clock."""
        return self.world.broadcast_object(fleet)

    # --- the proof ----------------------------------------------------------------------------------------------

    def prove(self, finished_steps: int, *, probes_all: bool = False, leaves_open: bool = False) -> None:
        """Afterwards the servers that serve have the weights after so many steps, proven; collective.

        Args:
            probes_all: probe each of them, unless that was done with these weights.
            leaves_open: do not wait for the probe of servers that have served before; `judge_probe` does.

        Raises:
            ServerFault: none serves, and none came back in time; or one fails before all have served once.
        """
        self.open_probe, self.probed = None, "" if self.open_probe else self.probed  # never judged: no proof
        self._agree_on_losses()
        self._rename()
        self._prove_once(finished_steps, everyone=False, probes_all=probes_all, leaves_open=leaves_open and self.proven)
        begun, pause = time.monotonic(), fleets.FIRST_PAUSE_S
        while not self.fleet.serving:
            left = self.world.broadcast_object(begun + self.recover_s - time.monotonic())
            if left <= 0:
                raise self._none_in_time()
            self._wait(pause, left)
            pause = min(2 * pause, LONGEST_WAIT_S)
            self._rename()
            self._prove_once(finished_steps, everyone=True, probes_all=probes_all)
        self.proven = True

    def none_left(self) -> NoServerLeft:
        """Of servers of which none serves."""
        fault = fleets.last_fault(self.fleet)
        return NoServerLeft(fault.why, where=fault.where, fix=fault.fix)

    def _none_in_time(self) -> ServerFault:
        fault = fleets.last_fault(self.fleet)
        if not self.recover_s:
            return fault
        waited = f"no rollout server is left, and none came back within {self.recover_s:g} s"
        return ServerFault(f"{fault.why}; {waited}", where=fault.where, fix=fault.fix)

    def _wait(self, pause_s: float, left_s: float) -> None:
        with self.world.raise_together("waiting for a rollout server"):
            if self.world.rank == 0:
                self.say(countdown(left_s))
            end = time.monotonic() + min(pause_s, left_s)
            while (left := end - time.monotonic()) > 0:
                self.world.check_stop()
                time.sleep(min(LOOK_S, left))

    def _rename(self) -> None:
        """Take in what the file of servers says now."""
        with self.world.raise_together("reading the file of servers"):
            if self.world.rank == 0:
                self.fleet = self._renamed()
        self.fleet = self._of_rank_0(self.fleet)
        known = {member.url for member in self.fleet.members}
        self.apis = {url: api for url, api in self.apis.items() if url in known}
        self.targets = {url: target for url, target in self.targets.items() if url in known}

    def _renamed(self) -> Fleet:
        try:
            wanted = self.named()
        except ConfigError as error:  # written at this moment, perhaps: the servers stay as they were
            new = str(error) != self.misread
            self.misread = str(error)
            return fleets.warned(self.fleet, f"the servers stay as they are: {error}") if new else self.fleet
        self.misread = ""
        return self.fleet if wanted is None else fleets.named(self.fleet, wanted)

    def _prove_once(
        self, finished_steps: int, *, everyone: bool, probes_all: bool, leaves_open: bool = False
    ) -> None:
        new = self._shaken_hands(everyone=everyone)
        serving = [member.url for member in self.fleet.serving]
        wanted = [member.url for member in self.fleet.members if member.url in {*serving, *new}]
        version = weight_version(self.sync.start_id, finished_steps)
        sent, left = self._send(finished_steps, wanted)
        others, faults = self._others(version, left)
        if others:  # once more
            sent = True
            for url in others if self.world.rank == 0 else ():
                self.targets[url].forget()
            _, left = self._send(finished_steps, left)
            others, faults = self._others(version, left)
        left = self._without({**faults, **others}, left)
        if sent:
            self.sent, self.probed = self.sent + 1, ""
        replicas = {one.url: one.replicas for one in self.fleet.serving}
        replicas |= {url: info.replicas for url, info in new.items()}
        due = (sent and self.sent % self.probe_every == 0) or (probes_all and self.probed != version)
        probed = {url: replicas[url] for url in left if due or url not in serving}
        self.open_probe = self._ask(probed)
        if not leaves_open or new:
            faults = self.judge_probe()
            left = [url for url in left if url not in faults]
        if due:
            self.probed = version
        self.fleet = fleets.joined(self.fleet, {url: replicas[url] for url in left}, version)

    def _without(self, faults: Mapping[str, ServerFault], urls: Sequence[str]) -> list[str]:
        """These servers less those that failed, which are lost."""
        self._lose(faults)
        return [url for url in urls if url not in faults]

    def _shaken_hands(self, *, everyone: bool) -> Found:
        """The servers that did not serve and have now passed the handshake, and what was found."""
        found: Found = {}
        faults: dict[str, ServerFault] = {}
        with self.world.raise_together("asking lost rollout servers"):
            if self.world.rank == 0:
                asked = fleets.due(self.fleet, time.monotonic(), everyone=everyone)
                for member, seen in zip(asked, self._all_asked(asked), strict=True):
                    if isinstance(seen, ServerFault):
                        faults[member.url] = seen
                    else:
                        found[member.url] = seen
                        self.targets[member.url] = self._target(member, seen)
        found, faults = self.world.broadcast_object((found, faults))
        self._lose(faults, counts=not everyone)
        return found

    def _all_asked(self, members: Sequence[Member]) -> list[ServerInfo | ServerFault]:
        """The handshake of each, all at once."""
        if not members:
            return []
        patience = replace(self.requirements, infer_timeout_s=min(HANDSHAKE_S, self.requirements.infer_timeout_s))
        longest = MOST_CALLS * self.api(members[0].url).longest_s(patience.infer_timeout_s)
        return at_once([partial(self._asked, member, patience) for member in members], within_s=longest)

    def _asked(self, member: Member, requirements: Requirements) -> ServerInfo | ServerFault:
        try:
            with as_server_fault(member.url, "asking whether it can serve"):
                self.api(member.url).knock(read_s=min(KNOCK_S, self.api(member.url).timeout_s))
            (info,) = check_servers([self.api(member.url)], [member.server.tensor_parallel_size], requirements)
        except ServerFault as fault:
            return fault
        return info

    def _send(self, finished_steps: int, urls: Sequence[str]) -> tuple[bool, list[str]]:
        """Whether weights were sent, and the servers that have them."""
        targets = [self.targets[url] for url in urls] if self.world.rank == 0 else []
        faults = self.sync.sync_weights(finished_steps, targets)
        return faults is not None, self._without(faults or {}, urls)

    def _others(self, version: str, urls: Sequence[str]) -> tuple[dict[str, ServerFault], dict[str, ServerFault]]:
        return other_versions(self.world, [self.api(url) for url in urls], version)

    def _ask(self, probed: Mapping[str, int]) -> Asked | None:
        """Ask servers the probe.

        Args:
            probed: address -> replicas.
        """
        apis = [self.api(url) for url in probed]
        read_s = self.requirements.infer_timeout_s
        return self.probe.ask(apis, list(probed.values()), read_s=read_s) if probed else None

    def judge_probe(self) -> dict[str, ServerFault]:
        """The servers that fail the probe that is open, and are lost; collective."""
        asked, self.open_probe = self.open_probe, None
        if asked is None:
            return {}
        found = self.probe.judge(asked)
        gaps = [one for one in found.values() if not isinstance(one, ServerFault)]
        if gaps:
            self.gap = max(gaps)
        faults = {url: one for url, one in found.items() if isinstance(one, ServerFault)}
        for url in set(found) - set(faults) if self.world.rank == 0 else ():
            self.targets[url].has_all = True
        self._lose(faults)
        return faults


def countdown(left_s: float) -> str:
    """What is said while no server is left."""
    return f"no rollout server is left; the run waits {left_s:.0f} s more for one before it saves and ends"
