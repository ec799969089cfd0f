"""`python -m openood_dream` is the command openood-dream."""

from openood_dream.cli import main

if __name__ == "__main__":
    main()
