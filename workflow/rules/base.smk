# Data and the model that every training job starts from.


rule prepare:
    output:
        expand("{data}/{name}.jsonl", data=DATA, name=GRID.sets),
        f"{DATA}/summary.json",
        f"{DATA}/leakage.json",
        f"{DATA}/leakage.md",
    log:
        f"{FOLDER}/logs/prepare.log",
    conda:
        "../../environment.yml"
    threads: thread_count("prepare")
    resources:
        mem_mb=memory("prepare"),
        runtime=minutes("prepare"),
    params:
        words=words("prepare"),
        config=identity("prepare"),
        code=code("prepare"),
        share=share,
    message:
        "prepare the data"
    shell:
        "exec alp prepare {params.words} {params.share} > {log:q} 2>&1"


rule pretrain:
    input:
        f"{DATA}/train.jsonl",
    output:
        expand("{base}/model/{name}", base=BASE, name=MODEL_FILES),
        f"{BASE}/metrics.jsonl",
        f"{BASE}/timings.jsonl",
        f"{BASE}/config.yaml",
    log:
        f"{FOLDER}/logs/pretrain.log",
    conda:
        "../../environment.yml"
    threads: thread_count("pretrain")
    resources:
        mem_mb=memory("pretrain"),
        runtime=minutes("pretrain"),
    params:
        words=words("pretrain"),
        config=identity("pretrain"),
        code=code("pretrain"),
        share=share,
    message:
        "teach the base model"
    shell:
        "exec alp pretrain {params.words} {params.share} > {log:q} 2>&1"


rule fetch:
    output:
        f"{BASE}/source.json",
    log:
        f"{FOLDER}/logs/fetch.log",
    conda:
        "../../environment.yml"
    threads: thread_count("fetch")
    resources:
        mem_mb=memory("fetch"),
        runtime=minutes("fetch"),
    params:
        words=words("fetch"),
        config=identity("fetch"),
        code=code("fetch"),
        share=share,
    message:
        "fetch the base model"
    shell:
        "exec alp fetch {params.words} {params.share} > {log:q} 2>&1"


rule evaluate_base:
    input:
        f"{DATA}/test.jsonl",
        START,
    output:
        f"{BASE}/evaluation/test.json",
        f"{BASE}/evaluation/test.samples.jsonl.gz",
    log:
        f"{FOLDER}/logs/evaluate_base.log",
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
        "evaluate the base model"
    shell:
        "exec alp evaluate {params.words} {params.share} > {log:q} 2>&1"
