"""The stages of the pipeline: one thin script each over the library, called alike by DVC and Snakemake."""
