"""Compare many runs: python study.py --config=configs/study.py --workdir=S [--config.base.field=value]."""

from cvae_jax.scripts.study import main

if __name__ == "__main__":
    main()
