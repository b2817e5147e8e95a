"""The guardian of power limits: a process that puts them back when whoever changed them is gone.

    python -m panthalassa.energy.guardian

In comes, on stdin, a JSON line {UUID: limit in mW}; `ready` goes out. When stdin ends, because the
other process closed it or died in whatever way, the limits are set and the guardian ends: with 0 if all
are. It is in a session of its own and heeds no signal that asks it to end.
"""

import json
import signal
import sys
from collections.abc import Mapping

import pynvml

from panthalassa.energy.meters import MeterLost
from panthalassa.energy.nvml import ask, shut


def restore(limits: Mapping[str, int]) -> list[str]:
    """Set the limits (mW); what went wrong, GPU by GPU."""
    problems = []
    try:
        ask("NVML", pynvml.nvmlInit)
    except MeterLost as error:
        return [str(error)]
    for uuid, limit in limits.items():
        try:
            handle = ask(uuid, pynvml.nvmlDeviceGetHandleByUUID, uuid)
            ask(uuid, pynvml.nvmlDeviceSetPowerManagementLimit, handle, limit)
        except MeterLost as error:
            problems.append(str(error))
    shut()
    return problems


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    limits = json.loads(sys.stdin.readline())
    print("ready", flush=True)
    sys.stdin.read()
    problems = restore(limits)
    for problem in problems:
        print(f"power limit not restored: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
