"""`make results` from end to end: cells, timing, pictures, page."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import ValidationError

from metal_edge.cli.console import progress, say, stop_requested
from metal_edge.data import load_images
from metal_edge.errors import DataError, MissingInputError, SettingsError
from metal_edge.files import write_text
from tools.results.campaign import run_cells
from tools.results.catalogue import Catalogue, Variant, published
from tools.results.cells import MODEL, REPORT, Cell, CellResult
from tools.results.fit import Hooks
from tools.results.measure import interleaved_ms
from tools.results.page import CellFigures, Made, ModelInfo, Results, SetInfo, render
from tools.results.pictures import check_matplotlib, draw_curves, shrink_gallery
from tools.results.sets import (
    LINE,
    LineSize,
    choose,
    digest,
    discover,
    ensure_line,
    line_folder,
    load_checked,
)

PAGE = "results.md"
FOLDER = "results"
JSON = "results.json"


@dataclass(frozen=True)
class Options:
    """The command's options; None takes everything, or models.toml's value."""

    data: Path | None
    seeds: int
    minutes: float | None
    models: list[str] | None
    sets: list[str] | None
    threads: int
    out: Path
    docs: Path
    config: Path | None
    line_images: str
    command: str


def run_all(options: Options) -> bool:
    """Runs what is missing and writes the page; False where a cell failed.

    Raises:
        KeyboardInterrupt: the person stopped it; the page is not touched.
        MetalEdgeError: unusable options or folders.
    """
    check_matplotlib()
    torch.set_num_threads(options.threads)
    catalogue = Catalogue(options.config) if options.config else Catalogue()
    variants = [catalogue.variant(name, options.minutes) for name in catalogue.choose(None)]
    wanted_models = catalogue.choose(options.models)
    with hooks() as world:
        sets = _sets(options, world)
        wanted_sets = choose(list(sets), options.sets)
        for variant in variants:
            if variant.network is None and variant.name in wanted_models:
                say(f"{variant.name}: this version has no such network, left out")
        cells = _cells(options, sets, variants, options.seeds)
        chosen = [c for c in cells if c.name in wanted_sets and c.variant.name in wanted_models]
        summary = run_cells(chosen, world, say)
        earlier = _earlier(options, sets, variants)
        _write_docs(options, cells, variants, world, earlier)
    for name, reason in summary.failures.items():
        say(f"failed: {name}: {reason}")
    say(f"{summary.made} cells made, {summary.kept} kept; {options.docs / PAGE}")
    return not summary.failures


@contextmanager
def hooks() -> Iterator[Hooks]:
    """The real clock, Ctrl-C and terminal."""
    with stop_requested() as asked:
        yield Hooks(time.monotonic, lambda: datetime.now(UTC), asked, progress)


def _sets(options: Options, world: Hooks) -> dict[str, Path]:
    found = discover(options.data) if options.data else {}
    if LINE in found:  # its pictures would be committed as if this project had rendered them
        raise SettingsError(f"{found[LINE]} is named like the simulated line", "rename the folder")
    size = line_size(options.line_images)
    wanted = options.sets is None or LINE in options.sets
    if wanted or line_folder(options.out / "data", size).is_dir():
        with world.progress("rendering the simulated line") as advance:
            found[LINE] = ensure_line(options.out / "data", size, world.counted(advance))
    return found


def line_size(text: str) -> LineSize:
    """`TRAIN,TEST_GOOD,PER_DEFECT` -> numbers.

    Raises:
        SettingsError: anything else.
    """
    try:
        train, good, defects = (int(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(
            f"--line-images {text!r} is not three numbers", "e.g. 200,60,12"
        ) from None
    if min(train, good, defects) < 1:
        raise SettingsError(f"--line-images {text!r} must be above 0", "e.g. 200,60,12")
    return LineSize(train, good, defects)


def _cells(
    options: Options, sets: dict[str, Path], variants: list[Variant], seeds: int
) -> list[Cell]:
    cells = []
    for name, root in sets.items():
        dataset = load_checked(root)
        contents = digest(dataset)
        for variant in variants:
            if variant.network is None:
                continue
            for seed in range(seeds):
                folder = options.out / name / variant.name / f"seed{seed}"
                cells.append(
                    Cell(
                        name,
                        dataset,
                        contents,
                        variant,
                        seed,
                        options.threads,
                        folder,
                        keep=seed == 0,
                    )
                )
    return cells


def _earlier(options: Options, sets: dict[str, Path], variants: list[Variant]) -> list[CellFigures]:
    """What the page already shows and this configuration would train in the same way.

    So rows that were trained on other days, or elsewhere, stay until they are trained anew; a
    row whose model, recipe or pictures changed since goes.
    """
    path = options.docs / FOLDER / JSON
    if not path.is_file():
        return []
    shown = read_results(path).cells
    seeds = max((cell.seed for cell in shown), default=-1) + 1
    same = {
        (cell.name, cell.variant.name, cell.seed): cell.fingerprint
        for cell in _cells(options, sets, variants, seeds)
    }
    return [c for c in shown if same.get((c.dataset, c.model, c.seed)) == c.fingerprint]


def _merged(new: list[CellFigures], earlier: list[CellFigures]) -> tuple[CellFigures, ...]:
    """`earlier` with what was trained anew in its place, by set, model and seed."""
    cells = {(c.dataset, c.model, c.seed): c for c in (*earlier, *new)}
    return tuple(cells[key] for key in sorted(cells))


def _write_docs(
    options: Options,
    cells: list[Cell],
    variants: list[Variant],
    world: Hooks,
    earlier: list[CellFigures],
) -> None:
    done = [(cell, result) for cell in cells if (result := cell.finished()) is not None]
    folder = options.docs / FOLDER
    sets = [
        _set_info(name, [pair for pair in done if pair[0].name == name], cells, folder)
        for name in dict.fromkeys(cell.name for cell in cells)
    ]
    _drop_stale(folder, sets)
    shown = _merged([_figures(result) for _, result in done], earlier)
    contents = Results(
        made=Made(
            utc=world.utc().isoformat(timespec="seconds"),
            machine=machine(),
            command=options.command.strip(),
            threads=options.threads,
        ),
        seeds=max(options.seeds, *(cell.seed + 1 for cell in shown)) if shown else options.seeds,
        sets=tuple(sets),
        models=tuple(
            ModelInfo(name=v.name, title=v.title, published=v.published) for v in variants
        ),
        cells=shown,
        milliseconds=_timings([cell for cell, _ in done], world),
    )
    write_text(folder / JSON, contents.model_dump_json(indent=1) + "\n")
    write_text(options.docs / PAGE, render(contents, published()))


def _drop_stale(folder: Path, sets: list[SetInfo]) -> None:
    """Removes curves and galleries that an earlier page showed and this one does not."""
    shown = {name for info in sets for name in (info.curves, *info.galleries.values())}
    for pattern in ("roc-*.svg", f"{LINE}-*.jpg"):
        for path in folder.glob(pattern):
            if path.name not in shown:
                path.unlink()


def _set_info(
    name: str, done: list[tuple[Cell, CellResult]], cells: list[Cell], folder: Path
) -> SetInfo:
    """Counts of a set, and the pictures that may be committed, drawn."""
    dataset = next(cell.dataset for cell in cells if cell.name == name)
    first = [(cell, result) for cell, result in done if cell.seed == 0]
    curves = None
    if first:
        curves = f"roc-{name}.svg"
        draw_curves(folder / curves, name, [result for _, result in first])
    galleries = {}
    if name == LINE:  # rendered by this project; pictures of other sets must not be committed
        for cell, _ in first:
            source = cell.folder / REPORT / "gallery.png"
            if source.is_file():
                galleries[cell.variant.name] = f"{LINE}-{cell.variant.name}.jpg"
                shrink_gallery(source, folder / galleries[cell.variant.name])
    good = sum(sample.good for sample in dataset.test)
    return SetInfo(
        name=name,
        train=len(dataset.train),
        test_good=good,
        test_anomalous=len(dataset.test) - good,
        masks=any(sample.mask is not None for sample in dataset.test),
        curves=curves,
        galleries=galleries,
    )


def _figures(result: CellResult) -> CellFigures:
    return CellFigures(
        dataset=result.dataset,
        model=result.model,
        seed=result.seed,
        fingerprint=result.fingerprint,
        finished=result.finished_utc[:10],
        figures={k: None if v is None else round(v, 5) for k, v in result.figures.items()},
        parameters=result.parameters,
        macs=result.macs,
        training_minutes=round(result.training_minutes, 2),
    )


def _timings(cells: list[Cell], world: Hooks) -> dict[str, dict[str, float]]:
    """Milliseconds by set and model, measured anew: models that were timed on different days,
    or beside different neighbours, do not compare."""
    timings = {}
    for name in dict.fromkeys(cell.name for cell in cells):
        mine = [c for c in cells if c.name == name and c.seed == 0]
        models = {c.variant.name: c.folder / MODEL for c in mine if (c.folder / MODEL).is_file()}
        sample = mine[0].dataset.test[:1] if mine else ()
        if not models:
            continue
        with world.progress(f"timing the models on {name}") as advance:
            measured = interleaved_ms(
                models,
                lambda side, sample=sample: load_images(sample, side, side),  # type: ignore[misc]
                world.seconds,
                on_round=world.counted(advance),
            )
        timings[name] = {model: round(ms, 2) for model, ms in measured.items()}
    return timings


def machine() -> str:
    """Processor and count of cores, in words; no host name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'unknown CPU'}, {os.cpu_count()} cores"


def render_docs(docs: Path) -> None:
    """results.md anew from the committed JSON.

    Raises:
        MissingInputError, DataError: there is none, or it is damaged.
    """
    write_text(docs / PAGE, render(read_results(docs / FOLDER / JSON), published()))


def read_results(path: Path) -> Results:
    """results.json.

    Raises:
        MissingInputError, DataError: there is none, or it is damaged.
    """
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist", "make it with `make results`")
    try:
        return Results.model_validate(json.loads(path.read_bytes()))
    except (ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is damaged ({reason})", "restore it from git") from error
