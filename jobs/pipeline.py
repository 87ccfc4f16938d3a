"""Entry point of a Ray Job: a screen's files in, a registered model out, the driver started again if it dies.

Command line: ``python jobs/pipeline.py pipeline.yaml [section.key=value ...]``
"""

import sys

from txpert_dist.cli.attempts import main

if __name__ == "__main__":
    sys.argv[1:1] = ["--attempts=3", "--", "pipeline"]
    main()
