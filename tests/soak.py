"""A long run of the quickstart config that watches its own process; `training/test_soak.py` runs it.

python tests/soak.py WORKDIR STEPS

Writes WORKDIR/samples.json: every 50 steps the resident memory in bytes and the numbers of open files, of
threads and of live JAX arrays; and the seconds from each step to the next.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from cvae_jax.runtime import platform  # noqa: E402

EVERY = 50
PROCESS = Path("/proc/self")


def sample(step: int) -> dict:
    import jax

    return {
        "step": step,
        "memory": int((PROCESS / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "files": len(os.listdir(PROCESS / "fd")),
        "threads": len(os.listdir(PROCESS / "task")),
        "arrays": len(jax.live_arrays()),
    }


def soak(workdir: Path, steps: int) -> dict:
    import jax

    from configs import quickstart
    from cvae_jax.train import open_run
    from cvae_jax.training.loop import Stopped

    config = quickstart.get_config()
    config.eval.every = 1  # so that what the first validation compiles is there soon
    run = open_run(config, workdir / "run", jax.local_devices()[:1])
    samples, starts, train_step = [], [], run.train_step

    def watched(*arguments):
        if len(starts) % EVERY == 0:
            samples.append(sample(len(starts)))
        starts.append(time.monotonic())
        return train_step(*arguments)

    run.train_step = watched
    run.should_stop = lambda: len(starts) > steps
    try:
        run.finish()
    except Stopped:
        pass
    seconds = [after - before for before, after in zip(starts, starts[1:])]
    return {"batches": run.loader.num_batches, "samples": samples, "seconds": seconds}


if __name__ == "__main__":
    platform.prepare(restart=True)
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    (folder / "samples.json").write_text(json.dumps(soak(folder, count)))
