"""The store against a plain model of it: any sequence of changes, restarts between them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from saegis_server.policy.errors import CasesError, PolicyError, SerialError
from saegis_server.policy.store.store import PolicyStore
from saegis_server.telemetry.metrics import Metrics
from tests.policy import made
from tests.policy.stores import states

SERIALS = st.integers(1, 6)
#: Compiled once; a store compiles them again.
ARCHIVES = {serial: made.archive(serial) for serial in range(1, 7)}
OTHERS = {serial: made.archive(serial, extra="urgent: true") for serial in range(1, 7)}
FAILING = {serial: made.archive(serial, expect="deny") for serial in range(1, 7)}


class Changes(RuleBasedStateMachine):
    """Puts, candidates, roll backs, wrong bundles and restarts of one policy."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.active = self.beside = self.highest = 0
        self.taken: set[int] = set()
        self.etags: list[str] = []
        self._open()

    def _open(self) -> None:
        self.store = PolicyStore(made.world(), Metrics(), self.folder)
        self.store.load_start([])

    def teardown(self) -> None:
        """The directory goes with the machine."""
        self.store.close()
        shutil.rmtree(self.folder)

    @property
    def etag(self) -> str:
        return self.store.get(made.NAME)[0].etag if self.active else ""

    @rule(serial=SERIALS)
    def put(self, serial: int) -> None:
        """A put is a step forward, the candidate, or what is in force already."""
        before = self.etag
        if serial > self.highest or serial in (self.active, self.beside):
            state = self.store.put(ARCHIVES[serial], before, "alice")
            assert (state.etag == before) == (serial == self.active)
            if serial != self.active:
                self.etags.append(state.etag)
                self.beside = self.beside if self.beside > serial else 0
            self.active, self.highest = serial, max(self.highest, serial)
            self.taken.add(serial)
        else:
            self.refused(ARCHIVES[serial], SerialError)

    @rule(serial=SERIALS)
    @precondition(lambda self: self.active)
    def put_beside(self, serial: int) -> None:
        """A candidate is a step forward, or the one that is there."""
        if serial > self.highest or serial == self.beside:
            etag, was = self.etag, self.beside
            state = self.store.put(ARCHIVES[serial], etag, "alice", shadow=True)
            if serial != was:
                self.etags.append(state.etag)
            self.beside, self.highest = serial, max(self.highest, serial)
            self.taken.add(serial)
        else:
            self.refused(ARCHIVES[serial], SerialError, shadow=True)

    @rule(data=st.data())
    @precondition(lambda self: self.taken)
    def roll_back(self, data: st.DataObject) -> None:
        """Any revision that was taken comes back, and no candidate stays."""
        serial = data.draw(st.sampled_from(sorted(self.taken)))
        digest = made.bundle(serial).digest
        self.etags.append(self.store.roll_back(made.NAME, digest[:8], self.etag, "bob").etag)
        self.active, self.beside = serial, 0

    @rule(serial=SERIALS, shadow=st.booleans())
    @precondition(lambda self: self.active)
    def put_what_is_broken(self, serial: int, shadow: bool) -> None:
        """Neither other content under a serial that was taken, nor failing cases under any."""
        if serial <= self.highest:
            self.refused(OTHERS[serial], SerialError, shadow=shadow)
        self.refused(FAILING[serial], PolicyError if serial <= self.highest else CasesError, shadow=shadow)

    @rule()
    def restart(self) -> None:
        """Everything survives."""
        before = states(self.store)
        self.store.close()
        self._open()
        assert states(self.store) == before

    def refused(self, archive: bytes, kind: type[PolicyError], *, shadow: bool = False) -> None:
        """A put that must not change anything."""
        deciding, etag = self.store.active, self.etag
        try:
            self.store.put(archive, etag, "mallory", shadow=shadow)
        except kind:
            assert self.store.active is deciding
            assert self.etag == etag
        else:
            raise AssertionError("a bundle was taken that must not be")

    @invariant()
    def is_as_the_model_says(self) -> None:
        """What is in force, what is beside it, and what there was."""
        deciding, found = self.store.active, states(self.store)
        assert len(set(self.etags)) == len(self.etags)
        if not self.active:
            assert found == ()
            return
        (state,) = found
        assert state.active.serial == self.active
        assert (state.shadow.serial if state.shadow is not None else 0) == self.beside
        assert [policy.serial for policy in deciding.policies] == [self.active]
        assert [policy.serial for policy in deciding.candidates] == ([self.beside] if self.beside else [])
        revisions = self.store.history(made.NAME)[1]
        assert [each.serial for each in revisions] == sorted(self.taken, reverse=True)


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)
