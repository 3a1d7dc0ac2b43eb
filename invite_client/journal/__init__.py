"""What a bulk run has done so far, in one SQLite file, so that it survives anything.

    async with Journal("run.sqlite") as journal:
        await journal.add([(1, invite), (2, another)])
        journal.end_of_input()
        async with client.send_invites(journal.invites()) as outcomes:
            async for outcome in outcomes:
                await journal.record(outcome)

There is one row for each invite, and the event ID is its key. Killed at any moment, a run loses
nothing: what is recorded as signed is never sent again, and what was being sent is sent again as the
same event, which is always safe. It needs no input to go on, and the same input again adds nothing.
"""

from invite_client.journal.file import State
from invite_client.journal.output import signed_line
from invite_client.journal.reading import BadLine, DestinationSummary, Entry, JournalReader
from invite_client.journal.writing import Added, Journal

__all__ = [
    "Added",
    "BadLine",
    "DestinationSummary",
    "Entry",
    "Journal",
    "JournalReader",
    "State",
    "signed_line",
]
