# What would run, by arm, before; then, in a terminal, one line now and then about the training jobs, and in a log what each job
# says of itself; the report's path at the end.
import atexit
import threading
from collections import defaultdict

from alp.following import JobLines


def planned(jobs):
    """The jobs to run as one line for each arm (which seeds), and one for what the whole grid shares."""
    seeds, shared = defaultdict(lambda: defaultdict(set)), []
    for job in jobs:
        arm = job.wildcards_dict.get("arm")
        if arm is not None:
            seeds[arm][job.rule.name].add(int(job.wildcards_dict["seed"]))
        elif job.rule.name != "all":
            shared.append(job.rule.name)
    lines = [f"  the grid: {', '.join(sorted(shared))}"] if shared else []
    for arm in [arm.name for arm in GRID.arms if arm.name in seeds]:
        parts = [
            f"{verb} {'seed' if len(seeds[arm][verb]) == 1 else 'seeds'} {', '.join(map(str, sorted(seeds[arm][verb])))}"
            for verb in ("train", "evaluate")
            if verb in seeds[arm]
        ]
        lines.append(f"  {arm}: {'; '.join(parts)}")
    return lines


def print_plan():
    """The closing lines of a dry run: what is left to do of which arm."""
    if workflow.dryrun and workflow.dag is not None:
        lines = planned(workflow.dag.needrun_jobs(exclude_finished=False))
        if lines:
            print("\n".join(["alp: would run", *lines]), file=sys.stderr)


if workflow.is_main_process:
    atexit.register(print_plan)


def status():
    """How many training jobs are trained and evaluated, and where those under way stand, as one line."""
    trained, running = 0, []
    folders = [
        GRID.run_dir(RESULTS, arm.name, seed)
        for arm in GRID.arms
        for seed in GRID.seeds
    ]
    for folder in folders:
        if (folder / "model" / "model.safetensors").is_file():
            trained += 1
        elif (folder / "metrics.jsonl").is_file():
            lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            last = json.loads(lines[-1]) if lines else {}
            reward = (
                f", reward {last['reward/mean']:.2f}" if "reward/mean" in last else ""
            )
            running.append(
                f"{folder.parent.name} {folder.name} at step {last.get('step', 0)}{reward}"
            )
    evaluated = sum(
        (folder / "evaluation" / "test.json").is_file() for folder in folders
    )
    return f"alp: {trained} of {len(folders)} trained, {evaluated} evaluated" + "".join(
        f" · {entry}" for entry in running
    )


def follow(ended, seconds=10):
    """Print the line whenever it has changed, until the workflow ends."""
    before = ""
    while not ended.wait(seconds):
        try:
            now = status()
        except (OSError, ValueError):  # a file of a starting job, half there
            continue
        if now != before:
            print(now, file=sys.stderr, flush=True)
        before = now


def relay(ended, jobs, seconds=30):
    """Print where each job stands, whenever it has said so, and that it is done, until the workflow ends."""
    over = False
    while not over:
        over = ended.wait(seconds)
        for line in jobs.news():
            print(f"alp: {line}", file=sys.stderr, flush=True)


def logs():
    """When each log of the grid was written last."""
    return {
        path: path.stat().st_mtime_ns for path in Path(FOLDER, "logs").rglob("*.log")
    }


def complaints(before):
    """The last line of every log written since, where it is an error in the user's own words."""
    errors = []
    for path, written in sorted(logs().items()):
        if written == before.get(path):
            continue
        last = path.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
        if last and last[0].startswith("alp: error: "):
            errors.append(f"{path}: {last[0]}")
    return errors


ENDED = threading.Event()
BEFORE = logs()
FOLLOWER = threading.Thread(
    target=follow if sys.stderr.isatty() else relay,
    args=(ENDED,) if sys.stderr.isatty() else (ENDED, JobLines(Path(FOLDER, "logs"))),
    daemon=True,
)


def stop_following():
    """Have the last lines printed."""
    ENDED.set()
    if FOLLOWER.ident is not None:
        FOLLOWER.join(10)


onstart:
    cluster()
    mark()
    schedule_when_a_job_ends()
    warm()
    FOLLOWER.start()


onsuccess:
    stop_following()
    page = Path(FOLDER, "report.html")  # --until may have ended before it
    print(
        f"report: {page}" if page.is_file() else f"results: {FOLDER}",
        file=sys.stderr,
    )


onerror:
    stop_following()
    for complaint in complaints(BEFORE):
        print(complaint, file=sys.stderr)
    print(
        f"alp: some jobs failed; their logs are in {FOLDER}/logs, what is done is kept",
        file=sys.stderr,
    )
