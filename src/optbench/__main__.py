"""`python -m optbench` and the console script `optbench`: leave with the command's exit code."""

import sys

from optbench.cli.main import main as run_command_line


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run_command_line())


if __name__ == "__main__":
    main()
