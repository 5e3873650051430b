"""Look at what a run on a cluster has left, for the scripts of this folder: scores, and where its models were made.

python check_run.py RUN [--hosts A,B] [--put-back]
"""

import argparse
import json
import math
import sys
from collections import Counter
from pathlib import Path


def main() -> None:
    """Print what is found; exit with 1 and a line where it is not what was wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--hosts", default="", help="each of these must have made a model")
    parser.add_argument("--put-back", action="store_true", help="a model must have been put back")
    options = parser.parse_args()

    events = [json.loads(line) for line in (options.run / "execution.jsonl").read_text().splitlines()]
    begun = Counter(event["device"] for event in events if event["event"] == "begin")
    ended = Counter(event["status"] for event in events if event["event"] == "end")
    back = [f"{event['key']}: {event['reason']}" for event in events if event["event"] == "put_back"]
    print("models begun:", ", ".join(f"{count} x {device}" for device, count in sorted(begun.items())))
    print("models ended:", ", ".join(f"{count} {status}" for status, count in sorted(ended.items())))
    for line in back:
        print("put back:", line)

    scores = json.loads((options.run / "scores.json").read_text())
    mae = scores["mean"]["mae"]
    print(f"scores.json: MAE {mae:.6g}")
    missing = [
        host for host in filter(None, options.hosts.split(",")) if not any(f" on {host}" in device for device in begun)
    ]
    problems = [f"no model was made on {host}" for host in missing]
    problems += ["its MAE is not finite"] * (not math.isfinite(mae))
    problems += ["a model did not finish"] * (set(ended) != {"finished"})
    problems += ["nothing was put back"] * (options.put_back and not back)
    problems += ["its log is not closed"] * (events[-1]["event"] != "closed")
    if problems:
        print(f"{options.run}: {'; '.join(problems)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
