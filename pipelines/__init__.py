"""The pipeline that turns videos into cookgen/1 shards. Run it with `python -m pipelines`."""

import os

# Before numpy loads: the number of BLAS threads changes the order of sums and so, in the end, what a model hears.
# Ray's workers would have one thread and this process as many as cores. Models set their own thread counts.
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ.update(THREADS)
