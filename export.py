"""Export a run as a web page: python export.py --workdir=W --out=puppet, then open puppet/index.html."""

from cvae_jax.scripts.export import main

if __name__ == "__main__":
    main()
