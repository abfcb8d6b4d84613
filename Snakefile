# The evidence behind one grid, from data to report: `snakemake --cores 2`, another with `--config grid=<name or path>`.
include: "workflow/rules/common.smk"
include: "workflow/rules/base.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/analysis.smk"
include: "workflow/rules/progress.smk"


rule all:
    default_target: True
    input:
        f"{FOLDER}/report.html",
        f"{FOLDER}/manifest.json",
        f"{FOLDER}/mlflow.json",
    threads: 1
    resources:
        mem_mb=100,
        runtime=1,
    message:
        "the grid is complete"
