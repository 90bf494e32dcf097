"""What a program is written with."""
