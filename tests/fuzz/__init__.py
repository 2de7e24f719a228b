"""Hostile files before every command: one error in words, soon, in bounded memory, whatever a file holds.

- `world`: small valid files of every kind that a command reads.
- `mutations`: how files of a kind are damaged or made hostile.
- `targets`: which commands read which files.
- `running`: inputs, numbered and seeded, each run in a process that is watched.

`python -m tests.fuzz --inputs 20000` runs any number (`make fuzz`).
"""
