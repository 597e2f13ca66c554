"""Make videos: python generate.py --workdir=W --first=PNG --labels=FOLDER, or --clip, --drive or --csv."""

from cvae_jax.scripts.generate import main

if __name__ == "__main__":
    main()
