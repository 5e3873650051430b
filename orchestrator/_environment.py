"""Variables that Ray reads when it is imported, set before anything here can import it.

They stay set in the caller's process: Ray looks at some of them again whenever it starts a worker.
"""

import os
import sys
import warnings

VARIABLES = {
    # Under `uv run` Ray's workers never start otherwise.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Ray 2.60 makes a token in the home folder, and later clusters then silently require it: say that none is used.
    "RAY_AUTH_MODE": "disabled",
    # Studies keep their own state and end on Ctrl-C by themselves; Ray's result files would only fill the disk.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def set_variables() -> None:
    """Set what is not set yet, and warn where Ray has been imported before and may not have seen it."""
    missing = {name: value for name, value in VARIABLES.items() if name not in os.environ}
    os.environ.update(missing)
    if missing and "ray" in sys.modules:
        warnings.warn(
            "ray was imported before crystaltune, which sets environment variables that ray reads when it is imported: "
            "import crystaltune first, or searches may hang under `uv run`",
            RuntimeWarning,
            stacklevel=3,
        )


set_variables()
