"""The command `ppl`: each of its commands is one small file, and a thin layer over the library."""
