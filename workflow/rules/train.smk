# One training job and its evaluation, for every arm and seed. `checkpoints/` is no output: Snakemake deletes outputs before
# every attempt, and a job continues from what it finds there.


rule train:
    input:
        f"{DATA}/train.jsonl",
        f"{DATA}/validation.jsonl",
        START,
    output:
        [f"{RUN}/model/{name}" for name in MODEL_FILES],
        f"{RUN}/metrics.jsonl",
        f"{RUN}/updates.jsonl",
        f"{RUN}/trajectories.jsonl",
        f"{RUN}/timings.jsonl",
        f"{RUN}/config.yaml",
        f"{RUN}/active.json",
        f"{RUN}/provenance.json",
    log:
        f"{FOLDER}/logs/train/{{arm}}_seed{{seed}}.log",
    conda:
        "../../environment.yml"
    threads: thread_count("train")
    resources:
        mem_mb=memory("train"),
        runtime=minutes("train"),
        gpu=gpus("train"),
        nodes=nodes,
        tasks=nodes,  # one on each, which starts the ranks there
        tasks_per_gpu=0,
        mpi=mpi,
    params:
        words=words("train"),
        config=identity("train"),
        code=code("train"),
        share=unrecorded,
    message:
        "train {wildcards.arm} seed {wildcards.seed}"
    shell:
        "exec alp train {params.words} {params.share} > {log:q} 2>&1"


rule evaluate:
    input:
        f"{DATA}/test.jsonl",
        [f"{RUN}/model/{name}" for name in MODEL_FILES],
    output:
        f"{RUN}/evaluation/test.json",
        f"{RUN}/evaluation/test.samples.jsonl.gz",
    log:
        f"{FOLDER}/logs/evaluate/{{arm}}_seed{{seed}}.log",
    conda:
        "../../environment.yml"
    threads: thread_count("evaluate")
    resources:
        mem_mb=memory("evaluate"),
        runtime=minutes("evaluate"),
        gpu=gpus("evaluate"),
    params:
        words=words("evaluate"),
        config=identity("evaluate"),
        code=code("evaluate"),
        share=share,
    message:
        "evaluate {wildcards.arm} seed {wildcards.seed}"
    shell:
        "exec alp evaluate {params.words} {params.share} > {log:q} 2>&1"
