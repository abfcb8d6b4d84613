# Tables, figures and the report of the grid.
from alp.analysis import runs as alp_runs

GRID_WORDS = shlex.join(
    [
        f"grid={alp_grid.quoted(config.get('grid', 'quick'))}",
        f"results={alp_grid.quoted(RESULTS)}",
    ]
)
GRID_CONTENT = GRID.content_hash


rule aggregate:
    input:
        **everything(),
    output:
        expand(
            "{folder}/tables/{name}.{ending}",
            folder=FOLDER,
            name=alp_runs.TABLES,
            ending=["csv", "md", "tex"],
        ),
    log:
        f"{FOLDER}/logs/aggregate.log",
    conda:
        "../../environment.yml"
    params:
        words=GRID_WORDS,
        config=GRID_CONTENT,
        code=code("aggregate"),
    shell:
        "alp aggregate {params.words} > {log} 2>&1"


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
        words=GRID_WORDS,
        config=GRID_CONTENT,
        code=code("figures"),
    shell:
        "alp figures {params.words} > {log} 2>&1"


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
        words=GRID_WORDS,
        config=GRID_CONTENT,
        code=code("report"),
    shell:
        "alp report {params.words} > {log} 2>&1"


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
        words=GRID_WORDS,
        config=GRID.content_hash,
        code=code("track"),
    shell:
        "alp track {params.words} > {log} 2>&1"
