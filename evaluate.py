"""Score a run: python evaluate.py --workdir=W [--checkpoint=best|last|<step>] [--split=validation|test]."""

from cvae_jax.scripts.evaluate import main

if __name__ == "__main__":
    main()
