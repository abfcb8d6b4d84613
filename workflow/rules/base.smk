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
    params:
        words=words("prepare"),
        config=identity("prepare"),
        code=code("prepare"),
    shell:
        "exec alp prepare {params.words} > {log:q} 2>&1"


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
    params:
        words=words("pretrain"),
        config=identity("pretrain"),
        code=code("pretrain"),
    shell:
        "exec alp pretrain {params.words} > {log:q} 2>&1"


rule fetch:
    output:
        f"{BASE}/source.json",
    log:
        f"{FOLDER}/logs/fetch.log",
    conda:
        "../../environment.yml"
    params:
        words=words("fetch"),
        config=identity("fetch"),
        code=code("fetch"),
    shell:
        "exec alp fetch {params.words} > {log:q} 2>&1"


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
    params:
        words=words("evaluate"),
        config=identity("evaluate"),
        code=code("evaluate"),
    shell:
        "exec alp evaluate {params.words} > {log:q} 2>&1"
