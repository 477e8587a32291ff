"""`python -m metal_edge` is `metal-edge`."""

from metal_edge.cli.app import main

if __name__ == "__main__":
    main()
