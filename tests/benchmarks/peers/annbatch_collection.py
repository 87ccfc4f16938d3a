"""Build annbatch's shuffled collection of one h5ad file; runs in a Python that has annbatch[zarrs].

python annbatch_collection.py SCREEN.h5ad COLLECTION.zarr DATASET_SIZE
"""

import sys

import zarr
from annbatch import DatasetCollection

if __name__ == "__main__":
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    DatasetCollection(sys.argv[2]).add_adatas([sys.argv[1]], dataset_size=sys.argv[3])
