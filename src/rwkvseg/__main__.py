"""`python -m rwkvseg`: the same as `rwkvseg`, for where scripts are not on the path."""

from rwkvseg.cli.program import main

if __name__ == "__main__":
    main()
