# Tables, figures, the report and the manifest of the grid.
from alp.reporting import runs as alp_runs

GRID_CONTENT = GRID.content_hash


rule aggregate:
    input:
        **everything(),
    output:
        expand(
            "{folder}/tables/{name}.{ending}",
            folder=FOLDER,
            name=alp_runs.table_names(GRID),
            ending=["csv", "md", "tex"],
        ),
    log:
        f"{FOLDER}/logs/aggregate.log",
    conda:
        "../../environment.yml"
    params:
        words=grid_words,
        config=GRID_CONTENT,
        code=code("aggregate"),
    shell:
        "exec alp aggregate {params.words} > {log:q} 2>&1"


rule figures:
    input:
        **everything(),
    output:
        [
            report(
                f"{FOLDER}/figures/{name}.{ending}",
                caption=f"../report/{name}.rst",
                category="Figures",
            )
            for name in alp_runs.figure_names(GRID)
            for ending in ("svg", "png")
        ],
    log:
        f"{FOLDER}/logs/figures.log",
    conda:
        "../../environment.yml"
    params:
        words=grid_words,
        config=GRID_CONTENT,
        code=code("figures"),
    shell:
        "exec alp figures {params.words} > {log:q} 2>&1"


rule report:
    input:
        rules.aggregate.output,
        rules.figures.output,
        f"{DATA}/leakage.md",
        **everything(),
    output:
        f"{FOLDER}/report.html",
    log:
        f"{FOLDER}/logs/report.log",
    conda:
        "../../environment.yml"
    params:
        words=grid_words,
        config=GRID_CONTENT,
        code=code("report"),
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
        **everything(),
    output:
        f"{FOLDER}/manifest.json",
        f"{FOLDER}/manifest_values.json",
    log:
        f"{FOLDER}/logs/manifest.log",
    conda:
        "../../environment.yml"
    params:
        words=grid_words,
        config=GRID_CONTENT,
        code=code("manifest"),
    shell:
        "exec alp manifest {params.words} > {log:q} 2>&1"


rule track:
    input:
        **everything(),
    output:
        f"{FOLDER}/mlflow.json",
    log:
        f"{FOLDER}/logs/track.log",
    conda:
        "../../environment.yml"
    params:
        words=grid_words,
        config=GRID_CONTENT,
        code=code("track"),
    shell:
        "exec alp track {params.words} > {log:q} 2>&1"
