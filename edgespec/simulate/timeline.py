"""A clock of discrete events: devices work side by side, and share one memory bus.

Between two events every job goes on at one pace. If all together ask for more than the bus has, it is shared fairly:
nobody gets more than it asks for, and what is left is divided equally (max-min fairness). A job that gets half of what
it asks for takes twice as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgespec.simulate.forwards import Forward

_DONE_S = 1e-12
"""what rounding leaves of a job that is over"""


@dataclass
class Job:
    """left: seconds it would still take alone, of its call and of the rest."""

    device: str
    label: str
    forward: Forward
    begin_s: float
    call_left_s: float
    left_s: float
    end_s: float | None = None

    @property
    def demand(self) -> float:
        """GB a second that it asks for now."""
        return 0.0 if self.call_left_s > 0 else self.forward.gb_per_s


@dataclass
class Timeline:
    """bus_gb_per_s: what all devices read together, at most.

    Two jobs of 10 and 5 seconds, each of which could read 80 of 100 GB a second. Each gets 50 as long as both run: the
    shorter one takes 8 seconds. Then the other one has half of its work left:

    >>> timeline = Timeline(100.0)
    >>> one, two = timeline.start("A", Forward(10.0, 0.0, 80.0)), timeline.start("B", Forward(5.0, 0.0, 80.0))
    >>> timeline.wait(two), timeline.wait(one)
    (8.0, 13.0)
    """

    bus_gb_per_s: float
    now_s: float = 0.0
    jobs: list[Job] = field(default_factory=list)
    _running: list[Job] = field(default_factory=list)

    def start(self, device: str, forward: Forward, label: str = "") -> Job:
        """A device does one job at a time."""
        assert all(job.device != device for job in self._running), f"{device} is busy"
        job = Job(device, label, forward, self.now_s, forward.call_s, forward.seconds - forward.call_s)
        self._running.append(job)
        self.jobs.append(job)
        return job

    def wait(self, job: Job) -> float:
        """Let time pass until a job is done. Returns the time."""
        while job.end_s is None:
            self._pass()
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """The host does something, while devices go on."""
        self.wait(self.start("host", Forward(seconds)))

    def is_done(self, job: Job) -> bool:
        return job.end_s is not None

    def busy_s(self, device: str) -> float:
        """How long a device has worked."""
        return sum(
            (self.now_s if job.end_s is None else job.end_s) - job.begin_s for job in self.jobs if job.device == device
        )

    def _pass(self) -> None:
        """Until the next event: a call or a job ends."""
        if len(self._running) == 1 and self._running[0].forward.gb_per_s <= self.bus_gb_per_s:  # nothing to share
            [alone] = self._running
            self.now_s += alone.call_left_s + alone.left_s
            alone.end_s, self._running = self.now_s, []
            return
        demands = [job.demand for job in self._running]
        paces = [1.0] * len(demands)
        if sum(demands) > self.bus_gb_per_s:
            shares = fair_shares(demands, self.bus_gb_per_s)
            paces = [share / demand if demand else 1.0 for share, demand in zip(shares, demands, strict=True)]
        step_s = min(
            job.call_left_s if job.call_left_s > 0 else job.left_s / pace
            for job, pace in zip(self._running, paces, strict=True)
        )
        self.now_s += step_s
        for job, pace in zip(self._running, paces, strict=True):
            if job.call_left_s > 0:
                job.call_left_s = 0.0 if job.call_left_s - step_s < _DONE_S else job.call_left_s - step_s
            else:
                job.left_s -= step_s * pace
            if job.call_left_s <= 0 and job.left_s < _DONE_S:
                job.end_s = self.now_s
        self._running = [job for job in self._running if job.end_s is None]


def fair_shares(demands: Sequence[float], limit: float) -> list[float]:
    """Max-min fair shares of a limit.

    >>> fair_shares([80.0, 80.0], 100.0), fair_shares([20.0, 90.0], 100.0), fair_shares([20.0, 30.0], 100.0)
    ([50.0, 50.0], [20.0, 80.0], [20.0, 30.0])
    """
    shares, left = [0.0] * len(demands), limit
    rising = sorted(range(len(demands)), key=lambda index: demands[index])
    for place, index in enumerate(rising):
        shares[index] = min(demands[index], left / (len(demands) - place))
        left -= shares[index]
    return shares
