# Data and the model that every training job starts from.


rule prepare:
    output:
        expand("{data}/{split}.jsonl", data=DATA, split=["train", "validation", "test"]),
        f"{DATA}/summary.json",
    log:
        f"{FOLDER}/logs/prepare.log",
    params:
        words=words("prepare"),
        config=identity("prepare"),
        code=code("prepare"),
    shell:
        "PYTHONPATH={PYTHONPATH} {ALP} prepare {params.words} > {log} 2>&1"


rule pretrain:
    input:
        f"{DATA}/train.jsonl",
    output:
        directory(f"{BASE}/model"),
        f"{BASE}/metrics.jsonl",
        f"{BASE}/timings.jsonl",
        f"{BASE}/config.yaml",
    log:
        f"{FOLDER}/logs/pretrain.log",
    params:
        words=words("pretrain"),
        config=identity("pretrain"),
        code=code("pretrain"),
    shell:
        "PYTHONPATH={PYTHONPATH} {ALP} pretrain {params.words} > {log} 2>&1"


rule evaluate_base:
    input:
        f"{DATA}/test.jsonl",
        f"{BASE}/model",
    output:
        f"{BASE}/evaluation/test.json",
    log:
        f"{FOLDER}/logs/evaluate_base.log",
    params:
        words=words("evaluate"),
        config=identity("evaluate"),
        code=code("evaluate"),
    shell:
        "PYTHONPATH={PYTHONPATH} {ALP} evaluate {params.words} > {log} 2>&1"
