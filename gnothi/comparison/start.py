"""How a comparison begins: every arm resolved, built and timed before the first trains; or what an earlier call left, if it asked for the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gnothi
from gnothi import evaluate
from gnothi.comparison import table
from gnothi.comparison.arms import Arm, typed
from gnothi.comparison.budget import ROUNDS, Cost, budget, look
from gnothi.contracts import DataError, GnothiError, SettingError
from gnothi.data import DataSpec, splits
from gnothi.recipes import spec
from gnothi.recipes.resolve import Resolved, resolve
from gnothi.training.progress import counted, duration

RESULTS = "results.json"
SEEN = "no test split was used: test images were among those trained on, without their labels"
Say = Callable[[str], None]
T = TypeVar("T")


def check(asked: Mapping[str, Any]) -> None:
    """Refuse what can be refused before any image is read."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingError("a comparison runs in one process; gnothi train can run in several")
    if asked["seeds"] < 1:
        raise SettingError(f"--seeds must be at least 1, got {asked['seeds']}")
    for option in ("epochs", "seconds"):
        if asked[option] is not None and not asked[option] > 0:
            raise SettingError(f"--{option} must be greater than 0, got {asked[option]:g}")
    if len(said := _lengths(asked)) > 1:
        raise SettingError(f"{said[0]} and {said[1]} both say how long a run is; leave one of the two out")


def _lengths(asked: Mapping[str, Any]) -> list[str]:
    """Everything asked that says how long a run is."""
    options = [f"--{option}" for option in ("epochs", "seconds") if asked[option] is not None]
    return options + ["training.epochs"] * ("training.epochs" in {**spec.flat(asked["settings"]), **asked["vary"]})


def data_settings(asked: Mapping[str, Any]) -> DataSpec:
    """How the images that measure are opened."""
    return spec.load({"data": spec.merge({"name": asked["data"]}, asked["settings"].get("data", {}))}).data


def begun(folder: Path, asked: Mapping[str, Any], arms: Sequence[Arm]) -> dict[str, Any] | None:
    """What ``results.json`` of an earlier call holds; None where there was none.

    Raises:
        SettingError: the folder holds something else, or was begun with other arguments.
        DataError: the images changed.
    """
    path = folder / RESULTS
    if not path.exists():
        others = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
        if others:
            raise SettingError(f"--out {folder} holds {others[0]} and no comparison; give it a folder of its own")
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        before, fingerprint = spec.flat(record["asked"]), record["data"]["fingerprint"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(f"{path} is not a comparison's ({type(error).__name__}); --out takes another folder") from None
    now = spec.flat(_plain(asked))
    for key in dict.fromkeys([*now, *before]):
        if before.get(key) != now.get(key):
            words = f"{_said(key)}={_told(before.get(key))}, not {_told(now.get(key))}"
            raise SettingError(f"{folder} was begun with {words}; the same arguments go on with it, --out begins another")
    if _resolve(asked, arms[0].settings).source.fingerprint() != fingerprint:
        raise DataError(f"{asked['data']} is not as it was when {folder} began; --out begins another comparison")
    return record


def _plain(value: Any) -> Any:
    """A value as JSON keeps it."""
    return json.loads(json.dumps(value))


def _said(key: str) -> str:
    """What a person typed for it."""
    group, dot, rest = key.partition(".")
    return rest if group == "settings" else f"--vary {rest}" if group == "vary" else "DATA" if group == "data" else f"--{group}{dot}{rest}"


def _told(value: Any) -> str:
    """A value as a person types it."""
    parts = value if isinstance(value, list) else [value]
    return ",".join("nothing" if part is None else typed(part) for part in parts)


def begin(asked: Mapping[str, Any], arms: Sequence[Arm], say: Say, quiet: bool = False) -> dict[str, Any]:
    """Look whether every arm can train and be measured, time it, and say what all will cost; nothing is written.

    Raises:
        SettingError: an arm makes no sense; its name stands first.
        DataError: the images cannot train or measure.
    """
    evaluate.run(asked["metric"], [], asked["data"], asked["test"], settings=data_settings(asked))  # labels and a test split are there
    with counted("timing arms", not quiet) as progress:
        settings, source, looks = _looks(asked, arms, progress)
    planned = {arm.name: named(arm.name, budget, looks[arm.name], asked["seconds"]) for arm in arms}
    found = []
    for name, own in planned.items():
        found.append({"arm": name, "settings": spec.merge(settings[name], {"training": {"epochs": own.epochs}}), **own.to_dict()})
        say(f"{name}: {own.epochs:.4g} epochs, {own.steps} steps of {own.step_seconds:.3g} s, about {duration(own.seconds)} a run")
    seeds, whole = asked["seeds"], sum(own.seconds for own in planned.values())
    counts = f"{counted_as(len(arms) * seeds, 'run')} ({counted_as(len(arms), 'arm')}, {counted_as(seeds, 'seed')})"
    say(f"{counts}: about {duration(seeds * whole)} of training in all")
    protocol = [*table.protocol(seeds), *([SEEN] if _seen(asked) else [])]
    record = {"gnothi": gnothi.__version__, "asked": asked, "data": source, "protocol": protocol, "arms": found, "runs": [], "table": []}
    kept: dict[str, Any] = _plain(record)
    return kept


def _seen(asked: Mapping[str, Any]) -> bool:
    """Whether the images that ask are held out of those that train."""
    own = splits(asked["data"].partition("@")[0], data_settings(asked))
    return asked["test"] is None and ("@" in asked["data"] or not {"test", "val"} & set(own))


def _looks(
    asked: Mapping[str, Any], arms: Sequence[Arm], progress: Callable[[int, int], None] | None
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], dict[str, list[Cost]]]:
    """Settings of each arm with its epochs, what the images are, and what each look at an arm found."""
    settings = {arm.name: arm.settings for arm in arms}
    looks: dict[str, list[Cost]] = {arm.name: [] for arm in arms}
    epochs, source = asked["epochs"], dict[str, Any]()
    rounds = 1 if asked["seconds"] is None else ROUNDS
    for turn in range(rounds):
        for i, arm in enumerate(arms):
            if progress is not None:
                progress(turn * len(arms) + i, rounds * len(arms))
            if epochs is not None and not turn:
                settings[arm.name] = spec.merge(arm.settings, {"training": {"epochs": epochs}})
            resolved = named(arm.name, _resolve, asked, settings[arm.name])
            looks[arm.name].append(named(arm.name, look, resolved))
            source = source or {"name": asked["data"], "fingerprint": resolved.source.fingerprint(), "n": len(resolved.source)}
            if not _lengths(asked):
                epochs = epochs or resolved.spec.training.epochs  # the rules may give the arms different lengths: all get the first one's
    return settings, source, looks


def counted_as(n: int, what: str) -> str:
    """A number with its noun."""
    return f"{n} {what}{'s' * (n != 1)}"


def named(arm: str, do: Callable[..., T], *given: Any) -> T:
    """Call a function; a mistake that it finds is the arm's."""
    try:
        return do(*given)
    except GnothiError as error:
        raise type(error)(f"{arm}: {error}") from None


def _resolve(asked: Mapping[str, Any], settings: Mapping[str, Any]) -> Resolved:
    return resolve(asked["data"], recipe_name=asked["recipe"], settings=settings, device=asked["device"])
