"""Make a data set of a video of one person: python prepare.py --video=my_dance.mp4 --out=data/me."""

from cvae_jax.scripts.prepare import main

if __name__ == "__main__":
    main()
