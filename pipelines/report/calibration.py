"""OUT/.runs/calibration.html: precision and recall of the matches over a grid of thresholds, the paper's marked.

Self-contained like the report, in whose style it is; there is no script in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.calibration import CRITERION, MIN_IOUS, PAPER, START_DIFFS_S, SURE_IOUS, Calibration, Point, Thresholds
from pipelines.report.page import render

_FOLDER = Path(__file__).parent
# The plot, in the units of its viewBox; recall goes to the right, precision up, each from 0 to 1.
SIDE, LEFT, TOP, WIDTH, HEIGHT = 440.0, 52.0, 14.0, 520.0, 506.0
_F1_LINES = (0.2, 0.4, 0.6, 0.8)
_APART = 16.0  # of two labels


@dataclass(frozen=True)
class Plot:
    """What is drawn: lines of equal F1 (path, label, its place), dots (x, y, tip), the frontier's path, two marks."""

    f1_lines: tuple[tuple[str, str, float, float], ...]
    ticks: tuple[tuple[float, float, str], ...]  # x, y, label
    dots: tuple[tuple[float, float, str], ...]
    frontier: str
    reach_x: float
    paper: tuple[float, float]
    best: tuple[float, float]
    label_y: tuple[float, float]  # of the paper's and the best point's labels
    labels_left: bool  # of their points, where there is more room


@dataclass(frozen=True)
class Cell:
    """A square of a heat map: F1, and how dark it is, 0 to 10."""

    f1: float
    shade: int
    is_paper: bool
    is_best: bool
    tip: str


@dataclass(frozen=True)
class HeatMap:
    """One sure_iou: a row for each min_iou, a cell for each max_start_diff_s."""

    sure_iou: float
    rows: tuple[tuple[float, tuple[Cell, ...]], ...]


def calibration_page(found: Calibration, *, name: str, annotations: str) -> str:
    """The page as HTML that can be written as UTF-8. name: of the set; annotations: the name of their file."""
    style = "".join((_FOLDER / file).read_text(encoding="utf-8") for file in ("style.css", "calibration.css"))
    return render(
        "calibration.html",
        style=style,
        name=name,
        annotations=annotations,
        found=found,
        criterion=CRITERION,
        plot=draw(found),
        maps=heat_maps(found),
        start_diffs=START_DIFFS_S,
        rows=found.named,
        size=(SIDE, LEFT, TOP, WIDTH, HEIGHT),
    )


def draw(found: Calibration) -> Plot:
    """The plane of recall and precision; thresholds that come to the same share a dot."""
    paper, best = _at(found.paper), _at(found.best)
    labels = [paper[1], best[1]]
    if abs(labels[0] - labels[1]) < _APART:
        labels = [labels[0] + _APART / 2, labels[1] - _APART / 2]
        if best[1] > paper[1]:
            labels = [paper[1] - _APART / 2, best[1] + _APART / 2]
    together: dict[tuple[float, float], list[Point]] = {}
    for point in found.points:
        together.setdefault(_at(point), []).append(point)
    return Plot(
        f1_lines=tuple(_f1_line(f1) for f1 in _F1_LINES),
        ticks=tuple((x, y, f"{tick / 5:g}") for tick in range(6) for x, y in [_place(tick / 5, tick / 5)]),
        dots=tuple((x, y, _tip(points)) for (x, y), points in sorted(together.items())),
        frontier=_path([_at(point) for point in found.frontier]),
        reach_x=_place(found.num_reachable / found.num_steps, 0)[0],
        paper=paper,
        best=best,
        label_y=(labels[0], labels[1]),
        labels_left=max(paper[0], best[0]) > LEFT + 0.7 * SIDE,
    )


def heat_maps(found: Calibration) -> list[HeatMap]:
    """F1 over the grid; the shades run from the least of all to the greatest."""
    points = {point.thresholds: point for point in found.points}
    least, greatest = min(point.f1 for point in found.points), max(point.f1 for point in found.points)

    def cell(thresholds: Thresholds) -> Cell:
        point = points[thresholds]
        shade = round(10 * (point.f1 - least) / (greatest - least)) if greatest > least else 10
        is_best = thresholds == found.best.thresholds
        return Cell(point.f1, shade, thresholds == PAPER, is_best, _tip([point]))

    return [
        HeatMap(
            sure_iou,
            tuple(
                (iou, tuple(cell(Thresholds(start_diff_s, iou, sure_iou)) for start_diff_s in START_DIFFS_S))
                for iou in MIN_IOUS
            ),
        )
        for sure_iou in SURE_IOUS
    ]


def _place(recall: float, precision: float) -> tuple[float, float]:
    return round(LEFT + SIDE * recall, 2), round(TOP + SIDE * (1 - precision), 2)


def _at(point: Point) -> tuple[float, float]:
    return _place(point.recall, point.precision)


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places) if places else ""


def _f1_line(f1: float) -> tuple[str, str, float, float]:
    """Where precision and recall have this harmonic mean: p = f1 r / (2 r - f1), from p = 1 to r = 1."""
    first = f1 / (2 - f1)  # the recall at precision 1, and the precision at recall 1
    recalls = [first + (1 - first) * (number / 40) ** 2 for number in range(41)]  # dense where it is steep
    places = [_place(recall, f1 * recall / (2 * recall - f1)) for recall in recalls]
    return _path(places), f"F1 {f1:g}", places[-1][0] - 4, places[-1][1] - 5


def _tip(points: Sequence[Point]) -> str:
    point = points[0]
    others = f", and {len(points) - 1} more" if len(points) > 1 else ""
    return (
        f"{point.thresholds.command}{others}: {point.num_right} of {point.num_matches} matches right, "
        f"{point.num_found} steps found, precision {point.precision:.2f}, recall {point.recall:.2f}, F1 {point.f1:.2f}"
    )
