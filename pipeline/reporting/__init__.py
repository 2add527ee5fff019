"""What the HTML pages share: charts, figures, thumbnails and templates.

Numbers and templates' values come in. Self-contained HTML goes out, which fetches nothing. The door is `__all__`.
"""
