"""Fine-tuning as a job. `panthalassa submit --job finetune` sends it, or, from the repository's root:

ray job submit --working-dir . -- python jobs/finetune.py --config jobs/configs/finetune-qa.yaml KEY=VAL…
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "platform"))  # the package beside it

from panthalassa.jobs.driver import main

if __name__ == "__main__":
    main("finetune")
