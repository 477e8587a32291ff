"""Another recipe, or other settings, without a restart and without a gap.

The new models are opened, proven and warmed up in a thread that steps back; the old ones serve
until then, and for good if anything is wrong. Once the new ones serve they are on trial: at the
first inference that fails or means nothing the old ones come back by themselves.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from metal_edge.bundle import Manifest
from metal_edge.daemon.changeover.golden_check import check_again
from metal_edge.daemon.changeover.proving import DEFAULT, Proven, prove, release
from metal_edge.daemon.changeover.reload import needs_restart
from metal_edge.daemon.changeover.trial import Trial
from metal_edge.daemon.changeover.versions import check_size, check_version, is_older
from metal_edge.daemon.line.model import Done, Model, Models
from metal_edge.daemon.mqtt.commands import Answer, Command
from metal_edge.daemon.scheduling import step_back
from metal_edge.errors import MetalEdgeError, SettingsError
from metal_edge.runtime.shared import Engines
from metal_edge.settings import LineSettings

log = logging.getLogger(__name__)

# A job that is under way when the line ends gets this long to notice.
LAST_JOB_S = 0.5

Reply = Callable[[Answer], None]


class Swaps(Protocol):
    """What is needed of a Line."""

    def replace_models(self, models: Models, done: Done) -> None:
        """See Line.replace_models."""


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """What decides, and under which settings."""

    settings: LineSettings
    recipe: str
    proven: Proven

    @property
    def first(self) -> Model:
        """Of the first camera."""
        return self.proven.models[self.settings.camera.camera_id]


@dataclass(frozen=True, slots=True)
class Outside:
    """What a changeover needs of the world.

    Attributes:
        engines: of the process.
        told: called in the deciding thread when something else serves.
        store: remembers the recipe over a restart, or says what is wrong; called in a thread
            that may wait.
        stopping: true when the line is about to stop.
    """

    engines: Engines
    told: Callable[[Serving], None]
    store: Callable[[str], str | None]
    stopping: Callable[[], bool]


class Changeover:
    """The changes of one line, one at a time.

    Args:
        serving: what the line was armed with; from here on it is released here.
        line: takes models over between two parts.
        outside: engines, and who wants to know.
    """

    def __init__(self, serving: Serving, line: Swaps, outside: Outside) -> None:
        self._line = line
        self._outside = outside
        self._lock = threading.Lock()
        self._storing = threading.Lock()
        self._serving = serving
        self._fallback: Serving | None = None  # of the trial under way
        self._swapping = False  # models are on their way to the deciding thread
        self._broken: Serving | None = None  # nothing to fall back to
        self._job: threading.Thread | None = None
        self._closed = False
        self._newest: dict[str, Manifest] = {}
        self._note_versions(serving)
        self.problem: str | None = None

    def problems(self) -> tuple[str, ...]:
        """What is wrong until the next change succeeds; for `state` and heartbeat."""
        return () if self.problem is None else (self.problem,)

    def recipe(self, command: Command) -> Answer | None:
        """Handles `cmd/recipe`; answers when the new recipe serves, or does not."""
        name, settings = str(command.fields["recipe"]), self._serving.settings
        if name != DEFAULT and name not in settings.recipes:
            return Answer("refused", f"no recipe {name!r} in the settings")
        older = bool(command.fields.get("allow_downgrade", False))

        def change() -> None:
            self._change(f"recipe {name}", lambda: settings, name, command.reply, older=older)

        return self._start(f"change to recipe {name}", change)

    def golden_check(self, command: Command) -> Answer | None:
        """Handles `cmd/golden-check`: the golden images again, one at a time between parts."""

        def check() -> None:
            command.reply(check_again(self._serving.proven.models))

        return self._start("golden check", check)

    def reload(self, load: Callable[[], LineSettings]) -> None:
        """Takes new settings over, as far as that goes without a restart; for SIGHUP.

        Args:
            load: reads them; what it raises is logged, and the old ones stay in force.
        """

        def checked() -> LineSettings:
            settings = load()
            fixed = needs_restart(self._serving.settings, settings)
            if fixed:
                raise SettingsError(
                    f"{', '.join(fixed)} cannot change while the line runs",
                    "restart it; none of the new settings are in force",
                )
            return settings

        def change() -> None:
            self._change("reload", checked, self._serving.recipe, lambda answer: None, older=False)

        busy = self._start("reload of the settings", change)
        if busy is not None:
            log.error("settings not reloaded: %s", busy.reason)

    def close(self) -> None:
        """After the line's end: gives the engines back."""
        with self._lock:
            self._closed = True
            job = self._job
        if job is not None:
            job.join(LAST_JOB_S)
        with self._lock:
            ours = [self._serving, self._fallback]
        for serving in ours:
            if serving is not None:
                release(serving.proven.models)

    def _start(self, what: str, work: Callable[[], None]) -> Answer | None:
        """Runs `work` in a thread of its own; an Answer when another one is at it."""

        def run() -> None:
            try:
                step_back()
                work()
            finally:
                with self._lock:
                    self._job = None

        with self._lock:
            if self._closed:
                return Answer("refused", "the line stops")
            if self._job is not None:
                return Answer("refused", f"busy with the {self._job.name}")
            self._job = threading.Thread(target=run, name=what, daemon=True)
            self._job.start()
        return None

    def _change(
        self, what: str, load: Callable[[], LineSettings], recipe: str, reply: Reply, *, older: bool
    ) -> None:
        """From settings to models that serve, or to a reason why not."""
        log.info("%s: recipe %s is being proven; %s serves", what, recipe, self._serving.recipe)
        try:
            new = self._prove(load(), recipe, older=older)
        except MetalEdgeError as error:
            log.error("%s failed, the line goes on as before: %s", what, error)
            self._fail(what, str(error), reply)
            return
        except Exception:
            log.exception("%s failed, the line goes on as before", what)
            self._fail(what, "internal error; see the log", reply)
            return
        if new is None or not self._swap(new):
            reply(Answer("failed", "the line stops"))
            return
        log.info("recipe %s serves", recipe)
        self._remember()
        reply(Answer("done", **_details(new)))

    def _remember(self) -> None:
        """What serves now, whichever of two threads comes last."""
        with self._storing:
            wrong = self._outside.store(self._serving.recipe)
        if wrong is not None:  # a restart would begin with the recipe of another product
            self.problem = wrong

    def _fail(self, what: str, reason: str, reply: Reply) -> None:
        self.problem = f"{what} failed"
        reply(Answer("failed", reason))

    def _prove(self, settings: LineSettings, recipe: str, *, older: bool) -> Serving | None:
        """None when the line stops meanwhile. Raises MetalEdgeError."""
        session_id = self._serving.first.identity.session_id
        stopping, engines = self._outside.stopping, self._outside.engines
        proven = prove(settings, recipe, session_id, engines, stopping)
        if proven is None:
            return None
        try:
            for camera_id, model in proven.models.items():
                check_size(model, self._serving.proven.models[camera_id])
                if not older:
                    check_version(model.bundle, self._newest)
        except MetalEdgeError:
            release(proven.models)
            raise
        return Serving(settings, recipe, proven)

    def _swap(self, new: Serving) -> bool:
        """Puts the new models into service, on trial. False when the line stopped first."""
        trial = Trial(
            passed=lambda: self._settle(new), broke=lambda why: self._return_from(new, why)
        )
        models = trial.watch(new.proven.models)
        over, taken = threading.Event(), threading.Event()

        def done(unused: Models) -> None:
            if not _same(unused, models):
                self._take(new)
                taken.set()
            over.set()

        with self._lock:
            self._swapping = True
        self._line.replace_models(models, done)
        over.wait()
        if not taken.is_set():
            release(new.proven.models)
        return taken.is_set()

    def _take(self, new: Serving) -> None:
        """In the deciding thread: `new` serves from now on."""
        with self._lock:
            unused, self._fallback = self._fallback, self._serving
            if self._serving is self._broken:
                unused, self._fallback = self._fallback, unused
            # Here, not in the thread that waits: the next inference may already end the trial.
            self._serving, self._swapping = new, False
        self.problem = None
        self._note_versions(new)
        self._outside.told(new)
        _release_later(unused)

    def _settle(self, new: Serving) -> None:
        """The trial went well: what served before is no longer needed."""
        with self._lock:
            if self._serving is not new:
                return
            unused, self._fallback = self._fallback, None
        log.info("recipe %s has proven itself in service", new.recipe)
        _release_later(unused)

    def _return_from(self, new: Serving, why: str) -> None:
        """The trial failed: what served before comes back, between this part and the next."""
        with self._lock:
            old = self._fallback
            if self._serving is not new or old is None:
                return
            if self._swapping:  # something else takes over in a moment
                self._broken = new
                return
        log.error("recipe %s failed in service: %s; %s comes back", new.recipe, why, old.recipe)

        def done(unused: Models) -> None:
            if _same(unused, old.proven.models):
                return  # the line stopped first; `close` releases both
            with self._lock:
                self._serving, self._fallback = old, None
            self.problem = f"recipe {new.recipe} failed in service"
            self._outside.told(old)
            _release_later(new)
            _later(self._remember)

        self._line.replace_models(old.proven.models, done)

    def _note_versions(self, serving: Serving) -> None:
        for model in serving.proven.models.values():
            manifest = model.bundle.manifest
            newest = self._newest.get(manifest.name)
            if newest is None or is_older(newest, manifest):
                self._newest[manifest.name] = manifest


def _same(one: Models, other: Models) -> bool:
    return any(one[camera_id] is other[camera_id] for camera_id in other)


def _release_later(serving: Serving | None) -> None:
    """Freeing an engine takes time that the deciding thread lacks."""
    if serving is not None:
        _later(lambda: release(serving.proven.models))


def _later(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="after the change", daemon=True).start()


def _details(serving: Serving) -> dict[str, Any]:
    identity = serving.first.identity
    return {
        "recipe": serving.recipe,
        "model": {
            "id": identity.model_id,
            "version": identity.model_version,
            "sha256": identity.model_sha256,
        },
    }
