"""Every stage's settings, figures and files as a run in MLflow, without a part in the result (docs/tracking.md).

The stage itself never talks to MLflow. It appends lines to `log.jsonl` beside its result (log.py), which takes a tenth
of a millisecond, puts a ticket into a queue (queue.py), and starts a server process where there is none (serve.py). The
server reads the logs of all stages that run on this machine, sends them, and ends 10 seconds after the last stage. So

- the 2 to 4 seconds of importing MLflow, its memory and a store that does not answer are the server's, not the
  stages', and are paid once for many short stages;
- the stage's random streams and threads are untouched: results are the same bytes with and without tracking;
- the log is the whole truth: what could not be sent is sent by the next server, or by `python -m sumnas.tracking sync`.

At its end a stage waits until its run has arrived, for at most 5 % of its own time and 10 s. A stage that was killed is
noticed by the lock on its log, which the system takes from it: its run ends as KILLED. The server has a session of
its own, out of reach of what ends a stage; where a scheduler ends it all the same, the next stage starts another one.

What was sent is known by MLflow, not here: a run carries the key that is in its log's first line and the number of
lines that have arrived (send.py). A sender that comes later, or at the same time, goes on from there, and sending a
line again changes nothing.

Environment: `MLFLOW_TRACKING_URI` (default: SQLite in the project's root), `SUMNAS_TRACKING` (`off`: write the log
only; `wait`: a stage ends only when its run has arrived), `SUMNAS_RUN_GROUP` (the name of the parent run).
"""

from __future__ import annotations

from sumnas.tracking.tracker import Tracker

__all__ = ["Tracker"]
