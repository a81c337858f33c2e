"""Draw the page's charts as SVG text."""
