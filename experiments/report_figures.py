"""Curves of groups of runs on the same data: as a PNG, or as SVG inside of a page."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.report_runs import Group, curve, points_of

INK = "#010203"  # stands for the colour of the text around an SVG
MAX_POINTS = 400  # of a curve in a page


def draw(groups: Sequence[Group], path: Path) -> None:
    """Draw the training loss and the validation metric, side by side."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    draw_loss(left, groups)
    draw_metric(right, groups)
    run = groups[0].first
    left.set(title=f"{run.task} ({run.provenance})")
    left.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def svg(draw_axes: Any, groups: Sequence[Group], prefix: str) -> str:
    """Return one panel as an SVG element, in the colours of the text around it.

    `prefix` keeps its ids apart from those of others on the page.
    """
    pyplot = _pyplot()
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color")
    style = dict.fromkeys((*ink, "ytick.color"), INK)
    style |= {"svg.fonttype": "none", "svg.hashsalt": prefix}  # the same every time
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(5.6, 3.6))
        draw_axes(axes, groups)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
        axes.legend(fontsize=8, ncols=3, frameon=False, labelcolor=INK, **below)
        text = io.StringIO()
        figure.savefig(
            text,
            format="svg",
            transparent=True,
            bbox_inches="tight",
            metadata={"Date": None},
        )
        pyplot.close(figure)
    return _inline(text.getvalue(), prefix)


def _inline(text: str, prefix: str) -> str:
    """Leave what a page needs of a stand-alone SVG file."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' xmlns(?::xlink)?="[^"]*"', "", text)
    return text.replace("xlink:href", "href").replace(INK, "currentColor")


def draw_loss(axes: Any, groups: Sequence[Group]) -> None:
    """Draw the training loss of every run, and what a loss is compared with."""
    _draw_curves(axes, groups, "train/loss")
    _draw_points(axes, points_of(groups)[1])
    axes.set(xlabel="step", ylabel="training loss, nats")


def draw_metric(axes: Any, groups: Sequence[Group]) -> None:
    """Draw the validation metric of every run, and what it is compared with."""
    results = [group.result for group in groups if group.result]
    metric = results[0]["metric"] if results else "accuracy"
    _draw_curves(axes, groups, f"validation/{metric}", marker=".")
    _draw_points(axes, points_of(groups)[0])
    axes.set(xlabel="step", ylabel=f"validation {metric}")


def _draw_curves(axes: Any, groups: Sequence[Group], name: str, **style: Any) -> None:
    for index, group in enumerate(groups):
        for run in group.runs:
            label = f"{run.variant} ({run.config})" if run is group.first else None
            steps, values = curve(run, name)
            thin = slice(None, None, max(1, len(steps) // MAX_POINTS))
            axes.plot(
                steps[thin],
                values[thin],
                color=f"C{index % 10}",
                linestyle=("-", "--", ":")[index // 10 % 3],
                label=label,
                linewidth=1.2,
                **style,
            )
    axes.grid(alpha=0.3)
    axes.margins(y=0.08)


def _draw_points(axes: Any, points: dict[str, float]) -> None:
    for index, name in enumerate(sorted(points, key=points.__getitem__)):
        axes.axhline(points[name], color="grey", linestyle=":", linewidth=1)
        axes.annotate(
            name,
            (0.01 + 0.24 * (index % 4), points[name]),  # side by side if close
            xycoords=("axes fraction", "data"),
            fontsize=8,
            color="grey",
            va="bottom",
        )


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
