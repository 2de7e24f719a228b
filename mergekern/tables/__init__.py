"""Tables of metrics, made from statistics without reading a weight.

- `metric_table`: MetricTable, every metric of every pair of models, with notes and provenance.
- `frames`: the matrices of a table as frames of pairs.
- `files`: a table as Parquet, CSV or JSON.
- `reading`: what such a file holds, checked; with `rows` (pairs), `schemas` (JSON) and `cells` (CSV).
- `notes`: what a reader of a table must know: tensors left out, pairs without a value.
- `groups`: group_metrics, metrics of groups of more than two models.
"""
