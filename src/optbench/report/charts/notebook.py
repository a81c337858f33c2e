"""Draw a frame's curves in a notebook as the report draws them: no plotting package needed."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from optbench.report.charts.line import Axes, Line, clip_definition, legend, line_chart
from optbench.report.charts.styles import numbered_style

_STYLE = Markup(
    "<style>.optbench{max-width:760px;font:14px/1.5 system-ui,sans-serif}"
    ".optbench .chart{width:100%;height:auto}.optbench .chart text{fill:#5b6270;font-size:12px}"
    ".optbench .chart .axis{fill:currentColor;font-size:13px}.optbench .rule{stroke:#dfe3ea}"
    ".optbench .line{fill:none;stroke-width:1.8;stroke-linejoin:round}"
    ".optbench span{margin-right:1.2em;white-space:nowrap}</style>"
)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawing that a notebook shows by itself; `html` stands alone too."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def draw_curves(
    frame: pd.DataFrame, *, x_title: str, y_title: str, is_log_y: bool = False
) -> Drawing:
    """Return one line per column over the frame's index; gaps are left out.

    A frame with nothing to join is a sentence and no chart.
    """
    lines = []
    for number, column in enumerate(frame.columns):
        values = frame[column].dropna()
        lines.append(
            Line(
                label=str(column),
                style=numbered_style(number, f"line-{number}"),
                x=[float(x) for x in values.index],
                y=[float(y) for y in values],
            )
        )
    svg = line_chart(lines, Axes(x_title=x_title, y_title=y_title, is_log_y=is_log_y))
    if svg is None:
        empty = Markup("<p>Nothing to draw yet: {} over {}.</p>").format(y_title, x_title)
        return Drawing(str(empty))
    whole = Markup('<div class="optbench">{}{}{}<p>{}</p></div>')
    return Drawing(str(whole.format(_STYLE, clip_definition(), svg, legend(lines))))
