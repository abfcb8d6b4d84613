# In a terminal, one line now and then about the training jobs; the report's path at the end.
import threading


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


def logs():
    """When each log of the grid was written last."""
    return {
        path: path.stat().st_mtime_ns for path in Path(FOLDER, "logs").rglob("*.log")
    }


def complaints(before):
    """The last line of every log written since, where it is an error in the user's own words."""
    found = []
    for path, written in sorted(logs().items()):
        if written == before.get(path):
            continue
        last = path.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
        if last and last[0].startswith("alp: error: "):
            found.append(f"{path}: {last[0]}")
    return found


ENDED = threading.Event()
BEFORE = logs()


onstart:
    mark()
    if sys.stderr.isatty():
        threading.Thread(target=follow, args=(ENDED,), daemon=True).start()


onsuccess:
    ENDED.set()
    print(f"report: {FOLDER}/report.html", file=sys.stderr)


onerror:
    ENDED.set()
    for complaint in complaints(BEFORE):
        print(complaint, file=sys.stderr)
    print(
        f"alp: some jobs failed; their logs are in {FOLDER}/logs, what is done is kept",
        file=sys.stderr,
    )
