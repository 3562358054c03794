"""From what a caller has (a path, lines of an iterable, a stream) to a batch that can be submitted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, Literal

from stoker.batch import parts
from stoker.batch.files import Folder
from stoker.batch.place import RedisPlace
from stoker.batch.source import CHUNK, check_input, kind_of
from stoker.batch.spec import Spec, check_batch_id, check_defaults, errors_for, output_for
from stoker.command import state_dir
from stoker.config import Config
from stoker.errors import InvalidRequest, StokerError
from stoker.request import RequestPriority
from stoker.store.connection import new_id

Source = str | os.PathLike[str] | Iterable[Mapping[str, Any] | str]
"""A path, or lines: objects as in a file, or prompts."""


def new_batch_id() -> str:
    """Return an id that no other batch has."""
    return f"batch-{new_id()}"


def prepare(
    source: Source | BinaryIO,
    config: Config,
    *,
    output: str | os.PathLike[str] | None = None,
    batch_id: str | None = None,
    priority: str = RequestPriority.BATCH,
    max_in_flight: int | None = None,
    any_model: bool = False,
    defaults: Mapping[str, Any] | None = None,
    store: Literal["folder", "redis"] | None = None,
) -> Spec:
    """Check what was given, put lines that are in no file into one, and return the batch.

    Raises `InvalidRequest` naming the field or the file; nothing is overwritten.
    """
    name = check_batch_id(new_batch_id() if batch_id is None else batch_id)
    _check(priority, max_in_flight)
    checked = check_defaults(defaults or {})
    if isinstance(source, str | os.PathLike):
        shown, path = os.fspath(source), Path(source).absolute()
        check_input(path)
        target = Path(output).absolute() if output else output_for(path)
    else:
        folder = state_dir(config) / "batches" / name
        shown, path = "input", _spooled(source, folder)
        target = Path(output).absolute() if output else folder / "output.jsonl"
    errors = errors_for(target)
    _check_targets(path, target, errors)
    return Spec(
        id=name,
        input=str(path),
        output=str(target),
        errors=str(errors),
        source=shown,
        kind=kind_of(path),
        priority=priority,
        max_in_flight=max_in_flight,
        defaults=checked,
        any_model=any_model,
        store=store or config.batch_store,
    )


def lay_out(spec: Spec, config: Config, window_s: float) -> None:
    """Bring the batch where its runs find it.

    In a folder that is what a later `resume` needs even of a Redis that forgot all; into Redis the input is sent.
    Raises `OSError`, `StoreFull`, `RedisUnavailable`.
    """
    if spec.store == "redis":
        with closing(RedisPlace(spec, config, lambda: window_s)) as place:
            place.send(Path(spec.input))
    else:
        Folder(spec.parts).put(parts.SPEC, spec.to_json().encode())


def left_by(place: Path) -> tuple[Spec, int, int]:
    """Return the batch that left files at `place` (its output, or its folder), with their epoch and round.

    Raises `StokerError` where there is none.
    """
    folders = [place, *place.parent.glob(f".{place.name}.*")]
    found = [folder for folder in folders if (folder / parts.SPEC).is_file()]
    if len(found) != 1:
        raise StokerError(f"{place}: {'no batch' if not found else 'more than one batch'} left files here")
    files = Folder(found[0])
    spec = Spec.from_dict(json.loads(files.get(parts.SPEC) or b"{}"))
    checkpoint = parts.last_checkpoint(files)
    return spec, parts.last_epoch(files), checkpoint.round if checkpoint else 0


def _check(priority: str, max_in_flight: int | None) -> None:
    if priority not in set(RequestPriority):
        raise InvalidRequest("priority", f"must be one of {', '.join(RequestPriority)}", priority)
    if max_in_flight is not None and (type(max_in_flight) is not int or max_in_flight < 1):
        raise InvalidRequest("max_in_flight", "must be an integer of at least 1", max_in_flight)


def _check_targets(source: Path, output: Path, errors: Path) -> None:
    for name, target in (("output", output), ("errors", errors)):
        if target == source or (target.exists() and target.samefile(source)):
            raise InvalidRequest(name, "must be another file than the input", str(target))
        if target.exists():
            raise InvalidRequest(name, "is there already, and nothing is overwritten; name another", str(target))
    if not output.parent.is_dir():
        raise InvalidRequest("output", "its folder does not exist", str(output))


def _spooled(source: BinaryIO | Iterable[Mapping[str, Any] | str], folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True)
    path = folder / "input.jsonl"
    with path.open("xb") as file:
        if hasattr(source, "read"):
            while piece := source.read(CHUNK):
                file.write(piece)
        else:
            for number, line in enumerate(source, 1):
                file.write(_line(line, number))
        file.flush()
        os.fsync(file.fileno())
    check_input(path)
    return path


def _line(line: Mapping[str, Any] | str, number: int) -> bytes:
    value = {"prompt": line} if isinstance(line, str) else line
    try:
        return json.dumps(value, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest("batch", f"item {number} has no JSON form ({error})", type(line).__name__) from None
