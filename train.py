"""Train a model: python train.py --config=configs/monotonic.py [--workdir=W] [--config.field=value]."""

from cvae_jax.scripts.train import main

if __name__ == "__main__":
    main()
