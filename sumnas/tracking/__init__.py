"""Every stage's settings, figures and files as a run in MLflow, without a part in the result (docs/tracking.md).

The stage itself never talks to MLflow. It appends lines to `log.jsonl` beside its result (log.py), which takes
microseconds, and starts one child process that reads the log and sends it (follow.py). So

- the 2 to 4 seconds of importing MLflow, its memory and a server that does not answer are the child's, not the stage's;
- the stage's random streams and threads are untouched: results are the same bytes with and without tracking;
- the log is the whole truth: what a child could not send, `python -m sumnas.tracking sync` sends later (sync.py).

At its end a stage waits for the child for at most 5 % of its own time and 10 s; a child that is not done then goes on
alone, for three minutes at most. A child whose stage was killed sees it at once, sends what is in the log, and ends. It
ignores the signals that a terminal or a scheduler sends to the whole group, so that it can.

What was sent is known by MLflow, not here: a run carries the key that is in its log's first line and the number of
lines that have arrived (send.py). A sender that comes later, or at the same time, goes on from there, and sending a
line again changes nothing.

Environment: `MLFLOW_TRACKING_URI` (default: SQLite in the project's root), `SUMNAS_TRACKING` (`off`: write the log
only; `wait`: a stage ends only when its run has arrived), `SUMNAS_RUN_GROUP` (the name of the parent run).
"""

from __future__ import annotations

from sumnas.tracking.tracker import Tracker

__all__ = ["Tracker"]
