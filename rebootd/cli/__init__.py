"""The command lines: ``rebootd`` (server, agent, demo) and ``rebootctl`` (operators).

Here live options, their checking, printing and exit codes, and the wiring of a process out of the other rooms. Here
never live: rules (core), requests' meaning (api), or anything that another room would want to import.

Exit codes of every command: 0 done; 1 refused, not found or failed; 2 bad input; 130 stopped with Ctrl-C.
"""
