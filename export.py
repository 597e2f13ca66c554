"""Make a page of a run: python export.py --workdir=W --out=puppet, then open puppet/index.html."""

from cvae_jax.scripts.export import main

if __name__ == "__main__":
    main()
