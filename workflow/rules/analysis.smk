# Tables, figures, the report and the manifest of the grid.
GRID_CONTENT = GRID.content_hash


rule aggregate:
    input:
        **everything(),
    output:
        shown("tables"),
    log:
        f"{FOLDER}/logs/aggregate.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=grid_memory,
        runtime=grid_minutes,
    params:
        words=grid_words,
        config=GRID_CONTENT,
        code=grid_code("aggregate"),
    message:
        "tables of the grid"
    shell:
        "exec alp aggregate {params.words} > {log:q} 2>&1"


rule figures:
    input:
        **everything(),
    output:
        shown("figures"),
    log:
        f"{FOLDER}/logs/figures.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=grid_memory,
        runtime=grid_minutes,
    params:
        words=grid_words,
        config=GRID_CONTENT,
        code=grid_code("figures"),
    message:
        "figures of the grid"
    shell:
        "exec alp figures {params.words} > {log:q} 2>&1"


rule report:
    input:
        rules.aggregate.output,
        rules.figures.output,
        f"{DATA}/leakage.json",
        every(f"{RUN}/trajectories.jsonl"),
        **everything(),
    output:
        report(f"{FOLDER}/report.html", category="Page", labels={"title": GRID.title}),
    log:
        f"{FOLDER}/logs/report.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=grid_memory,
        runtime=grid_minutes,
    params:
        words=grid_words,
        config=GRID_CONTENT,
        code=grid_code(
            "report",
            "alp/rendering/*.j2",
            "alp/reporting/*.j2",
            f"docs/reference/{GRID.name}.*.json",
        ),
    message:
        "report of the grid"
    shell:
        "exec alp report {params.words} > {log:q} 2>&1"


rule manifest:
    input:
        rules.aggregate.output,
        rules.figures.output,
        rules.report.output,
        rules.prepare.output,
        START if GRID.own_model or GRID.fetched else rules.pretrain.output,
        every([f"{RUN}/model/{name}" for name in MODEL_FILES]),
        every(f"{RUN}/trajectories.jsonl"),
        **everything(),
    output:
        f"{FOLDER}/manifest.json",
        f"{FOLDER}/manifest_values.json",
    log:
        f"{FOLDER}/logs/manifest.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=grid_memory,
        runtime=grid_minutes,
    params:
        words=grid_words,
        config=GRID_CONTENT,
        code=grid_code("manifest"),
    message:
        "manifest of the grid"
    shell:
        "exec alp manifest {params.words} > {log:q} 2>&1"


rule track:
    input:
        rules.aggregate.output,
        rules.figures.output,
        rules.report.output,
        **everything(),
    output:
        f"{FOLDER}/mlflow.json",
    log:
        f"{FOLDER}/logs/track.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=grid_memory,
        runtime=grid_minutes,
    params:
        words=grid_words,
        config=GRID_CONTENT,
        code=grid_code("track"),
    message:
        "log the grid to MLflow"
    shell:
        "exec alp track {params.words} > {log:q} 2>&1"
