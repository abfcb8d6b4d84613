"""A process that holds a sandbox and runs what it is sent, so that a test decides which user starts it. One JSON object
a line, in and out; needs nothing but this package and the standard library."""

from __future__ import annotations

import dataclasses
import json
import sys
from concurrent.futures import ThreadPoolExecutor

from alp.errors import UserError
from alp.tasks.sandbox import Limits, Sandbox


def main() -> None:
    """``{"programs": [[code, stdin], …], "timeout"}`` is answered with the list of results and the counts."""
    try:
        box = Sandbox(workers=2, limits=Limits(**json.loads(sys.argv[1])))
    except UserError as error:
        print(json.dumps({"refused": str(error)}), flush=True)
        return
    print(json.dumps({"ready": [worker.pid for worker in box.workers]}), flush=True)
    with box, ThreadPoolExecutor(4) as threads:
        for line in sys.stdin:
            request = json.loads(line)
            jobs = [threads.submit(box.run, *program, request["timeout"]) for program in request["programs"]]
            results = [dataclasses.asdict(job.result()) for job in jobs]
            print(json.dumps({"results": results, "counts": box.counts}), flush=True)


if __name__ == "__main__":
    main()
