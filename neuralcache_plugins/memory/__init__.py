"""Learned state: a fold over the event log, with snapshots.

``Memory`` keeps the states of a store's namespaces level with the log: it folds what this process appended straight
from RAM, reads what others appended, and starts again when something was erased.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence

from neuralcache_plugins.contracts import Appended, Event, Head, Recorded, SatisfactionFell, Snapshot, TelemetryStore
from neuralcache_plugins.errors import StoreError
from neuralcache_plugins.memory.course import Course, Decision, Point
from neuralcache_plugins.memory.questions import Near, Origin
from neuralcache_plugins.memory.satisfaction import Watch
from neuralcache_plugins.memory.snapshots import fold_name, pack, unpack
from neuralcache_plugins.memory.state import Features, LearnedState, Learner
from neuralcache_plugins.settings import RerankSettings

__all__ = ["Course", "Decision", "Features", "LearnedState", "Learner", "Memory", "Near", "Origin", "Point", "Watch"]

logger = logging.getLogger(__name__)

READ_LIMIT = 2_000


class Memory:
    """The learned states of one store's namespaces. Hold ``lock`` while reading a state.

    ``on_erased`` is called once it shows that anybody erased something. ``on_fall`` is called, with ``lock`` held, when
    news of the log show that satisfaction fell; what a state is begun from is no news.
    """

    def __init__(
        self,
        store: TelemetryStore,
        *,
        settings: RerankSettings,
        snapshot_every: int,
        on_erased: Callable[[], object] = lambda: None,
        on_fall: Callable[[SatisfactionFell], object] = lambda fall: None,
    ) -> None:
        self.lock = threading.RLock()
        self._store = store
        self._settings = settings
        self._fold = fold_name(settings)
        self._snapshot_every = snapshot_every
        self._on_erased = on_erased
        self._on_fall = on_fall
        self._states: OrderedDict[str, LearnedState] = OrderedDict()
        self._snapshot_at: dict[str, int] = {}
        self._sign: Hashable = None
        self._epoch = 0
        self._position = -1
        self._known_sign: Hashable = None
        self.known_epoch = 0
        """The store's epoch as far as this process has seen, 0 before it looked; see ``epoch``."""
        self._absorbed: deque[tuple[Sequence[Recorded], Appended]] = deque(maxlen=READ_LIMIT)

    def state(self, namespace: str) -> LearnedState:
        """Return the namespace's state, level with the log. ``StoreError`` if the log cannot be read.

        Costs one ``sign()`` when nobody else wrote.
        """
        with self.lock:
            self._catch_up()
            state = self._states.get(namespace)
            if state is None:
                state = self._states[namespace] = self._load(namespace)
            self._states.move_to_end(namespace)
            if len(self._states) > self._settings.namespaces_in_memory:
                gone, _ = self._states.popitem(last=False)  # the log still has it
                self._snapshot_at.pop(gone, None)
            return state

    def last_known(self, namespace: str) -> LearnedState:
        """Return the state as far as this process knows it: of the store nothing is asked but its sign."""
        with self.lock:
            try:
                self.settle()
            except StoreError:
                logger.debug("what was told last cannot be vouched for while the store is in trouble")
            return self._states.get(namespace) or LearnedState(self._settings)

    def absorb(self, recorded: Sequence[Recorded], appended: Appended) -> None:
        """Take note of events that this process has just appended; they are folded by ``settle`` or when next asked.

        Costs next to nothing, so feedback need not wait for the fold. If others wrote meanwhile, the log is read.
        """
        self._absorbed.append((recorded, appended))
        if self.known_epoch and appended.before == self._known_sign:
            self._known_sign = appended.sign

    def epoch(self) -> int:
        """Return the store's epoch; costs a query only when somebody else wrote since it was last asked."""
        with self.lock:
            sign = self._store.sign()
            if sign != self._known_sign:
                self._see(self._store.head(), sign)
            return self.known_epoch

    def event(self, position: int, namespace: str) -> Event | None:
        """Return the event of a position, None if it was erased or is another namespace's. Costs one query."""
        found = self._store.read(after=position - 1, upto=position, namespace=namespace, limit=1)
        return found[0].event if found else None

    def settle(self) -> None:
        """Fold what was absorbed; what cannot be folded is read from the log when a state is next asked for.

        Costs one ``sign()``. ``StoreError`` if there is none to be had.
        """
        with self.lock:
            if self._absorbed:
                self._fold_own(self._store.sign())

    def reset(self) -> None:
        """Drop every state; the next reading folds the log again."""
        with self.lock:
            self._absorbed.clear()
            self._states.clear()
            self._snapshot_at.clear()
            self._sign = None
            self._position = -1

    def restart_after_fork(self) -> None:
        """Begin anew in a forked child: a lock may have been held, and events may be the parent's to fold."""
        self.lock = threading.RLock()
        self.reset()

    def snapshots_due(self) -> bool:
        """Return whether some namespace has moved far enough since its last snapshot."""
        with self.lock:
            self.settle()
            return any(
                state.rankings + state.feedback - self._snapshot_at.get(name, 0) >= self._snapshot_every
                for name, state in self._states.items()
            )

    def save_snapshots(self, *, all_moved: bool = False) -> None:
        """Write snapshots of the states that moved by ``snapshot_every`` events, or of all that moved a tenth of it."""
        least = max(1, self._snapshot_every // 10) if all_moved else self._snapshot_every
        self.settle()
        for namespace in list(self._states):
            with self.lock:
                state = self._states.get(namespace)
                if state is None or state.rankings + state.feedback - self._snapshot_at.get(namespace, 0) < least:
                    continue
                snapshot = Snapshot(epoch=self._epoch, position=state.position, state=pack(state))
                self._snapshot_at[namespace] = state.rankings + state.feedback
            self._store.save_snapshot(namespace, self._fold, snapshot)

    def _fold_own(self, sign: Hashable) -> None:
        """Fold what was absorbed, if it leads from where this memory stands to ``sign``: then nobody else wrote."""
        place, own = self._sign, list[Recorded]()
        while self._absorbed and place != sign:
            recorded, appended = self._absorbed.popleft()
            if appended.before != place:
                return
            own += recorded
            place = appended.sign
        if place == sign and self._position >= 0:
            self._fold_in([one for one in own if one.position > self._position])
            self._sign = sign

    def _catch_up(self) -> None:
        sign = self._store.sign()
        self._fold_own(sign)
        if sign == self._sign and self._position >= 0:
            return
        head = self._store.head()
        self._see(head, sign)
        if self._position < 0 or head.epoch != self._epoch:
            self._states.clear()
            self._snapshot_at.clear()
            self._epoch, self._position = head.epoch, head.position
        if head.position - self._position > self._snapshot_every:
            self._leap(head.position)
        while self._position < head.position:
            batch = self._store.read(after=self._position, upto=head.position, limit=READ_LIMIT)
            if not batch:
                self._position = head.position
                break
            self._fold_in(batch)
        self._sign = sign

    def _leap(self, target: int) -> None:
        """Go on from snapshots that others have saved since: sooner done than folding all that they have folded.

        Of the falls that this leaps over the last is told.
        """
        for name, state in self._states.items():
            newer = self._from_snapshot(name, upto=target)
            if newer is None or newer.position <= state.position:
                continue
            self._states[name] = newer
            if newer.satisfaction.last is not None and newer.satisfaction.falls > state.satisfaction.falls:
                self._on_fall(newer.satisfaction.last)
        self._position = max(self._position, min((one.position for one in self._states.values()), default=target))

    def _see(self, head: Head, sign: Hashable) -> None:
        if self.known_epoch not in (0, head.epoch):
            self._on_erased()
        self.known_epoch = head.epoch
        self._known_sign = sign

    def _fold_in(self, batch: Sequence[Recorded]) -> None:
        for one in batch:
            state = self._states.get(one.event.namespace)
            for fall in () if state is None else state.fold(one):
                self._on_fall(fall)
            self._position = one.position

    def _load(self, namespace: str) -> LearnedState:
        state = self._from_snapshot(namespace, upto=self._position) or LearnedState(self._settings)
        while True:
            batch = self._store.read(
                after=state.position, upto=self._position, namespace=namespace, limit=READ_LIMIT
            )
            for one in batch:
                state.fold(one)
            if len(batch) < READ_LIMIT:
                return state

    def _from_snapshot(self, namespace: str, *, upto: int) -> LearnedState | None:
        snapshot = self._store.load_snapshot(namespace, self._fold)
        if snapshot is None or snapshot.epoch != self._epoch or snapshot.position > upto:
            return None
        try:
            state = unpack(snapshot.state, self._settings)
        except ValueError as error:
            logger.warning("the snapshot of namespace %r cannot be read and is made anew: %s", namespace, error)
            return None
        self._snapshot_at[namespace] = state.rankings + state.feedback
        return state
