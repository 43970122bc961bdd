"""A drawing as SVG text. The same calls give the same bytes; all text is escaped."""

from __future__ import annotations

from html import escape

INK, MUTED, GRID, PAPER = "#1c2733", "#5b6875", "#dfe4e9", "#ffffff"
#: Okabe and Ito (2008): told apart also by those who see few colours.
GREEN, ORANGE, GREY, BLUE, AMBER = "#009e73", "#d55e00", "#9aa3ab", "#0072b2", "#e69f00"


class Drawing:
    """Collects shapes; lengths are in pixels at the drawing's own size, which shrinks to fit a page.

    Args:
        width: of the drawing.
        height: of the drawing.
        title: what it shows, for those who do not see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self._size = width, height
        self._parts = [f"<title>{escape(title)}</title>"]

    def rect(self, x: float, y: float, width: float, height: float, fill: str, tip: str = "") -> None:
        """Draw a filled rectangle; `tip` is shown to who points at it."""
        self._shape(f'rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"', tip)

    def line(self, x1: float, y1: float, x2: float, y2: float, color: str = GRID, width: float = 1.0) -> None:
        """Draw a line."""
        self._shape(
            f'line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width:g}"'
        )

    def dot(self, x: float, y: float, radius: float, fill: str, opacity: float = 1.0, tip: str = "") -> None:
        """Draw a disc."""
        self._shape(f'circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}" fill-opacity="{opacity:g}"', tip)

    def diamond(self, x: float, y: float, radius: float, fill: str, tip: str = "") -> None:
        """Draw a square on its corner."""
        points = f"{x:.1f},{y - radius:.1f} {x + radius:.1f},{y:.1f} {x:.1f},{y + radius:.1f} {x - radius:.1f},{y:.1f}"
        self._shape(f'polygon points="{points}" fill="{fill}"', tip)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: str = "start",
        size: int = 13,
        fill: str = INK,
        bold: bool = False,
    ) -> None:
        """Write text; `anchor` is start, middle or end, and `y` its base line."""
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}"{weight}>'
            f"{escape(text)}</text>"
        )

    def __str__(self) -> str:
        width, height = self._size
        return (
            f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
            'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">'
            f"{''.join(self._parts)}</svg>"
        )

    def _shape(self, tag: str, tip: str = "") -> None:
        self._parts.append(f"<{tag}><title>{escape(tip)}</title></{tag.split()[0]}>" if tip else f"<{tag}/>")


def mix(color: str, share: float) -> str:
    """Return a colour diluted with white: share 0 is white, 1 the colour itself."""
    parts = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 + (part - 255) * min(max(share, 0.0), 1.0)):02x}" for part in parts)
