"""What a finished run shows: `result.json` and `report.html`.

A job, its data set's manifest and the files that training left come in. Out go the numbers of the run, as one JSON
value, and a page that shows them.
"""
