"""The project measured, side by side with the least that could be done and with Synapse.

    python -m benchmarks --quick

Absolute figures say more about a machine than about a program, so what is reported are ratios:
all contenders run in turns in one run, and a ratio is taken within each round. `docs/performance.md`
says what is measured, how, and what came out.
"""
